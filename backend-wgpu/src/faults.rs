//! What goes wrong on a device that is there, whichever it is.

use vaecf_core::backend::{Backend, Fault, Host, HostMut, Role};

use crate::{Choice, Lowered, Options, Wgpu};

/// Some device; none where the machine has none, which is said.
fn any(lowered: Lowered) -> Option<Wgpu> {
    match Wgpu::open(&Options { lowered, ..Options::default() }) {
        Ok(wgpu) => Some(wgpu),
        Err(why) => {
            eprintln!("not tested: {why}");
            None
        }
    }
}

#[test]
fn an_adapter_that_is_not_there_is_named_beside_those_that_are() {
    for adapter in [Choice::Number(99), Choice::Name("no such adapter".into())] {
        let Err(why) = Wgpu::open(&Options { adapter, ..Options::default() }) else { panic!("it is there") };
        let why = why.to_string();
        assert!(why.contains("--device") || why.contains("no adapter was found"), "{why}");
    }
}

#[test]
fn a_lost_device_says_so_from_then_on() {
    let Some(mut wgpu) = any(Lowered::default()) else { return };
    let buf = wgpu.alloc(Role::Act, 100).expect("a small buffer");
    wgpu.context.device.destroy();
    let lost = |result: Result<(), Fault>| matches!(result, Err(Fault::Lost(_)));
    assert!(lost(wgpu.sync()));
    assert!(lost(wgpu.upload(buf, 0, Host::F32(&[1.0]))));
    assert!(lost(wgpu.download(buf, 0, HostMut::F32(&mut [0.0]))));
    assert!(lost(wgpu.alloc(Role::Act, 100).map(drop)));
    wgpu.free(buf);
    assert!(lost(wgpu.sync()));
}

#[test]
fn what_does_not_fit_is_out_of_memory_and_nothing_is_lost() {
    let Some(mut wgpu) = any(Lowered { buffer: Some(1 << 20), ..Lowered::default() }) else { return };
    let huge = wgpu.alloc(Role::Act, 1 << 60);
    assert!(matches!(huge, Err(Fault::OutOfMemory { .. })), "{huge:?}");
    let huge = wgpu.alloc(Role::Index, 1 << 60);
    assert!(matches!(huge, Err(Fault::OutOfMemory { .. })), "{huge:?}");
    let list = wgpu.alloc(Role::Index, 1 << 19);
    assert!(matches!(&list, Err(Fault::Other(why)) if why.contains("262144")), "{list:?}");
    // Longer than a buffer may be, and still a matrix.
    let buf = wgpu.alloc(Role::Act, 1 << 20).expect("in pieces");
    let mut ends = [0.0; 2];
    wgpu.upload(buf, (1 << 20) - 2, Host::F32(&[1.0, 2.0])).expect("an upload");
    wgpu.download(buf, (1 << 20) - 2, HostMut::F32(&mut ends)).expect("a download");
    assert_eq!(ends, [1.0, 2.0]);
}

#[test]
fn a_shader_that_is_refused_is_an_error_with_its_name() {
    let Some(mut wgpu) = any(Lowered::default()) else { return };
    let shared = |words: u32| {
        format!(
            "var<workgroup> all: array<u32, {words}>;
             @compute @workgroup_size(1) fn main() {{ all[0] = 1u; }}"
        )
    };
    for (name, text) in [
        ("half_written", "fn main( {".to_owned()),
        ("wrong_type", "@compute @workgroup_size(1) fn main() { let x: f32 = 1u; }".to_owned()),
        ("many_threads", "@compute @workgroup_size(100000) fn main() { }".to_owned()),
        ("much_shared", shared(1 << 20)),
    ] {
        let refused = wgpu.call_text(name, &|| text.clone(), &[], &[], 1);
        assert!(matches!(&refused, Err(Fault::Other(why)) if why.contains(name)), "{refused:?}");
    }
    assert_eq!(wgpu.call_text("little_shared", &|| shared(8), &[], &[], 1), Ok(()));
    assert_eq!(wgpu.sync(), Ok(()));
}

#[test]
fn a_wait_that_fails_is_an_error() {
    let Some(wgpu) = any(Lowered::default()) else { return };
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let panicked = wgpu.context.waited(|| panic!("as the library does"));
    std::panic::set_hook(silent);
    assert!(matches!(panicked, Err(Fault::Lost(_))), "{panicked:?}");
    let late = wgpu.context.waited(|| Err(wgpu::PollError::Timeout));
    assert!(matches!(&late, Err(Fault::Other(why)) if why.contains("does not answer")), "{late:?}");
}
