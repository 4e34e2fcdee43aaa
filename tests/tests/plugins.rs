//! Backends in shared libraries: good ones train as any other, and of bad ones a person reads a sentence.

mod built;
#[path = "../examples/plugin_rust.rs"]
mod plugin_rust;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use proptest::prelude::*;
use vaecf_core::{
    Kind,
    backend::{
        Backend, Buf, Curve, Decode, Fault, Graph, Host, HostMut, Invitation, Mark, Mat, Result, Role, Rows,
        ScaleState, Seat, StepParams,
    },
    config::{Member, ModelConfig, TrainConfig},
    device::Device,
    forward_backend,
    plugin::{Request, abi, export, link, load},
    tensors::Tensors,
    trainer::Trainer,
};
use vaecf_cpu::Cpu;
use vaecf_tests::{
    Case, Learned, Op, Step, cases,
    compare::{Tolerance, compare},
    planted, values,
};

fn asked(precision: &str, threads: usize) -> Request {
    Request { precision: precision.into(), threads: Some(threads), ..Request::default() }
}

static ALARM: AtomicU32 = AtomicU32::new(0);

/// A place in a group, every part of which can be told from the others.
fn seat() -> Seat {
    let invitation = Invitation { bytes: std::array::from_fn(|at| at as u8 + 1) };
    Seat { rank: 2, world: 5, invitation, half: true, limit: 7.5, alarm: &ALARM }
}

fn open(path: &Path) -> Box<dyn Backend> {
    load(path, &asked("f32", 1)).unwrap()
}

/// What the loader says of a library that it refuses: one line about the device, which begins with the path.
fn refusal(path: &Path, request: &Request) -> String {
    let error = load(path, request).err().expect("it is refused");
    assert_eq!(error.kind(), Kind::Device);
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    text.strip_prefix(&format!("{}: ", path.display())).unwrap_or_else(|| panic!("not of the file: {text}")).to_owned()
}

fn refused(name: &str, faults: &[&str], words: &str) {
    let said = refusal(&built::faulty(name, faults), &Request::default());
    assert!(said.contains(words), "{words:?} is not in: {said}");
}

fn temporary(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}

// ---- what the loader refuses ----

#[test]
fn files_that_are_no_library_are_named() {
    let said = |path: &Path| refusal(path, &Request::default());
    assert!(said(&temporary("gone.so")).contains("there is no such file"));
    assert!(said(Path::new(env!("CARGO_TARGET_TMPDIR"))).contains("folder"));
    let text = temporary("text.so");
    fs::write(&text, "these are the words of somebody else").unwrap();
    let words = said(&text);
    assert!(words.contains("no shared library") && words.contains(std::env::consts::ARCH), "{words}");
    assert!(!words.contains("text.so"), "the path comes once: {words}");
    fs::write(&text, "").unwrap();
    assert!(said(&text).contains("no shared library"));
}

#[test]
fn a_name_without_a_folder_is_a_file_and_no_library_of_the_system() {
    // dlopen alone would find this one.
    assert!(refusal(Path::new("libc.so.6"), &Request::default()).contains("there is no such file"));
}

#[test]
fn libraries_of_another_interface_are_refused() {
    refused("no_symbol", &["NO_SYMBOL"], "does not export vaecf_backend_v1");
    refused("older", &["VERSION=0"], "version 0 of the interface, older than 1");
    refused("newer", &["VERSION=2"], "version 2 of the interface, newer than 1");
    refused("small", &["SIZE=64"], "fills 64 bytes");
    refused("half", &["SIZE=(offsetof(vaecf_backend,logits_rows)+4)"], "in whole entries");
    refused("large", &["SIZE=4096"], "fills 4096 bytes");
    refused("no_alloc", &["NO_ALLOC"], "it has no alloc");
    refused("no_info", &["NO_INFO"], "it has no info");
}

#[test]
fn a_backend_that_says_no_is_quoted() {
    refused("refuses", &["REFUSES"], "no such card is plugged in");
    refused("refuses_silently", &["REFUSES", "SILENT"], "refused with code 2");
    for plugin in [built::plugin_c(), built::plugin_rust()] {
        assert!(refusal(plugin, &asked("bf16", 1)).contains("computes in f32, not in bf16"));
        assert!(refusal(plugin, &Request { device: 3, ..Request::default() }).contains("one device, 0"));
    }
    let error = load(built::plugin_c(), &asked("a precision with a long name", 1)).err().unwrap();
    assert!(error.to_string().contains("is no precision"), "{error}");
}

#[test]
fn a_backend_that_is_impossible_is_refused() {
    refused("no_ctx", &["NO_CTX"], "gives no ctx");
    refused("align", &["ALIGN_ZERO"], "gives 0 as align");
    refused("align_huge", &["ALIGN_HUGE"], "2147483648 as align");
    refused("unended", &["NO_ENDING_ZERO"], "a name that is empty, not UTF-8, or not ended");
    refused("not_utf8", &["NOT_UTF8"], "a device that is empty, not UTF-8");
    refused("master", &["UNKNOWN_MASTER"], "7 as the type of masters");
    refused("precision", &["UNKNOWN_PRECISION"], "the precision \"fp32\"");
    refused("captures", &["CAPTURES"], "promises captures");
    refused("info_fails", &["INFO_FAILS"], "info: nobody knows");
}

// ---- what comes back from a call ----

const NOTHING: Mat = Mat { buf: Buf(1), rows: 0, cols: 0, stride: 0, offset: 0 };

fn linear(backend: &mut dyn Backend) -> Result {
    backend.linear(NOTHING, NOTHING, NOTHING, Curve::Identity, NOTHING)
}

#[test]
fn codes_become_faults() {
    let code = |code: u32| {
        let mut backend = open(&built::faulty(&format!("code_{code}"), &[&format!("CODE={code}")]));
        linear(&mut *backend)
    };
    let said = "linear: the words of the plugin";
    assert_eq!(code(0), Ok(()));
    assert!(matches!(code(1), Err(Fault::Other(text)) if text.ends_with(said)));
    assert!(matches!(code(2), Err(Fault::Lost(text)) if text.ends_with(said)));
    assert_eq!(code(3), Err(Fault::Unsupported("linear")));
    assert!(matches!(code(4), Err(Fault::Other(text)) if text.ends_with(said)));
    assert!(matches!(code(77), Err(Fault::Other(text)) if text.ends_with(said)));
    let mut silent = open(&built::faulty("silent", &["CODE=4", "SILENT"]));
    assert!(matches!(linear(&mut *silent), Err(Fault::Other(text)) if text.ends_with("it failed and gives no reason")));
    let mut silent = open(&built::faulty("silent_77", &["CODE=77", "SILENT"]));
    assert!(matches!(linear(&mut *silent), Err(Fault::Other(text)) if text.contains("code 77")));
}

#[test]
fn what_is_null_is_unsupported_or_the_default() {
    let mut backend = open(&built::faulty("null", &[]));
    let rows = Rows { indptr: Buf(1), indices: Buf(1), values: Buf::NONE, users: Buf::NONE, first: 0, count: 0 };
    assert_eq!(backend.top_k(NOTHING, rows, 1, Buf(1), Buf(1)), Err(Fault::Unsupported("top_k")));
    assert_eq!(backend.adam(Buf(1), Buf(1), Buf(1), Buf(1), 0, 0, Buf(1), Buf(1)), Err(Fault::Unsupported("adam")));
    // The defaults: of `linear`, which is there, and `top_k`, which is not.
    let decode = Decode { g: NOTHING, w: NOTHING, b: NOTHING, curve: Curve::Tanh, logits: NOTHING };
    assert_eq!(backend.recommend(decode, rows, 1, Buf(1), Buf(1)), Err(Fault::Unsupported("top_k")));
    assert_eq!(backend.logits_rows(7, 9), 7);
    assert_eq!(backend.sync(), Ok(()));
    assert!(matches!(backend.invite(0), Err(Fault::Unsupported(_))));
    assert!(matches!(backend.join(seat()), Err(Fault::Unsupported(_))));
    assert!(matches!(backend.all_reduce(Buf(1), 0, 0), Err(Fault::Unsupported(_))));
    assert!(matches!(backend.broadcast(Buf(1), 0, 0), Err(Fault::Unsupported(_))));
    assert_eq!(backend.capture_begin(), Err(Fault::Unsupported("capture")));
    assert_eq!(backend.capture_end(), Err(Fault::Unsupported("capture")));
    assert_eq!(backend.replay(Graph(1)), Err(Fault::Unsupported("replay")));
    assert_eq!(backend.mark(), Err(Fault::Unsupported("mark")));
    assert_eq!(backend.seconds(Mark(0), Mark(0)), Err(Fault::Unsupported("seconds")));
    assert_eq!(backend.ceilings(), Err(Fault::Unsupported("ceilings")));
}

#[test]
fn memory_that_is_not_there_is_told_in_bytes() {
    let mut backend = open(&built::faulty("memory", &[]));
    let out = |wanted| Err(Fault::OutOfMemory { device: "nothing".into(), wanted });
    let len = 1 << 40;
    assert_eq!(backend.alloc(Role::Act, len), out(4 * len));
    assert_eq!(backend.alloc(Role::Weight, len), out(6 * len));
    assert_eq!(backend.alloc(Role::Grad, len), out(4 * len));
    assert_eq!(backend.alloc(Role::Step, len), out(size_of::<StepParams>() as u64 * len));
    assert_eq!(backend.alloc(Role::Scale, u64::MAX), out(u64::MAX));
    let mut none = open(&built::faulty("no_handle", &["NO_HANDLE"]));
    assert!(matches!(none.alloc(Role::Act, 1), Err(Fault::Other(text)) if text.contains("no handle")));
    for plugin in [built::plugin_c(), built::plugin_rust()] {
        let mut backend = open(plugin);
        for len in [1 << 61, 1 << 50, u64::MAX / 8, u64::MAX] {
            let full = backend.alloc(Role::Act, len);
            assert!(matches!(&full, Err(Fault::OutOfMemory { wanted, .. }) if *wanted >= len), "{full:?}");
        }
        assert!(backend.alloc(Role::Act, 8).is_ok());
    }
}

#[test]
fn handles_that_are_wrong_are_errors_on_the_other_side_too() {
    for plugin in [built::plugin_c(), built::plugin_rust()] {
        let mut backend = open(plugin);
        let fault = |r: Result| assert!(matches!(r, Err(Fault::Other(_))), "{r:?}");
        let buf = backend.alloc(Role::Act, 64).unwrap();
        let m = Mat { buf, rows: 2, cols: 16, stride: 16, offset: 0 };
        backend.free(buf);
        backend.free(buf);
        backend.free(Buf(4_000_000));
        backend.free(Buf::NONE);
        fault(backend.linear(m, m, m, Curve::Tanh, m));
        fault(backend.linear_grad_input(Mat { offset: 60, ..m }, m, m, Curve::Tanh, m));
        fault(backend.upload(Buf(77), 0, Host::F32(&[1.0])));
        fault(backend.download(buf, 0, HostMut::F32(&mut [0.0])));
        let small = backend.alloc(Role::Act, 4).unwrap();
        assert_ne!(small, buf, "a handle is given out once");
        fault(backend.upload(small, 2, Host::F32(&[1.0; 3])));
        fault(backend.upload(small, u64::MAX, Host::F32(&[1.0; 3])));
        fault(backend.upload(small, 0, Host::U32(&[1])));
        fault(backend.upload(small, 0, Host::Scale(&ScaleState::default())));
        fault(backend.download(small, 0, HostMut::U32(&mut [0])));
        fault(backend.linear(
            Mat { rows: 1, cols: 4, ..m },
            m,
            m,
            Curve::Tanh,
            Mat { buf: small, rows: u32::MAX, ..m },
        ));
        let index = backend.alloc(Role::Index, 4).unwrap();
        fault(backend.upload(index, 0, Host::F32(&[1.0])));
        fault(backend.download(index, 0, HostMut::F64(&mut [0.0])));
        backend.upload(small, 0, Host::F32(&[])).unwrap();
        backend.upload(small, 1, Host::F32(&[1.5, 2.5])).unwrap();
        let mut back = [0.0_f64; 4];
        backend.download(small, 0, HostMut::F64(&mut back)).unwrap();
        compare(&back[..], [0.0, 1.5, 2.5, 0.0], &Tolerance::EXACT).unwrap();
    }
}

// ---- panics ----

/// Panics where it is told to.
struct Panics {
    inner: Cpu<f32>,
    in_linear: bool,
}

fn panics_in_linear(request: &Request) -> vaecf_core::Result<Panics> {
    assert_ne!(request.device, 1, "device one is where it hurts");
    Ok(Panics { inner: Cpu::new(request.threads)?, in_linear: request.device == 0 })
}

impl Backend for Panics {
    forward_backend! { self, self.inner;
        info alloc free upload download sync
        encode_sparse encode_sparse_grad linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
        capture_begin capture_end replay invite all_reduce broadcast
    }

    fn linear(&mut self, _: Mat, _: Mat, _: Mat, _: Curve, _: Mat) -> Result {
        assert!(!self.in_linear, "a wheel came off");
        Err(Fault::Unsupported("linear"))
    }

    fn join(&mut self, seat: Seat) -> Result {
        let Seat { rank, world, invitation, half, limit, alarm } = seat;
        let (sum, alarm) =
            (invitation.bytes.iter().map(|&byte| u32::from(byte)).sum::<u32>(), alarm.load(Ordering::Relaxed));
        Err(Fault::Other(format!("{rank} of {world}, {sum}, {half}, {limit}, {alarm}")))
    }

    fn logits_rows(&self, batch: u32, _: u32) -> u32 {
        if self.in_linear { batch / 2 } else { panic!("no rows") }
    }
}

unsafe extern "C" fn panics(version: u32, out: *mut abi::VTableV1) -> i32 {
    // SAFETY: what `link` promises an entry point.
    unsafe { export::fill(version, out, panics_in_linear) }
}

fn linked(device: u32) -> vaecf_core::Result<Box<dyn Backend>> {
    // SAFETY: the entry point is made by `export::fill`.
    unsafe { link(panics, "here", &Request { device, ..asked("f32", 1) }) }
}

#[test]
fn a_panic_is_an_error_and_ends_the_backend() {
    let error = linked(1).err().expect("the constructor panics");
    let text = error.to_string();
    assert!(
        text.starts_with("here: the backend stopped at a bug of its own") && text.contains("where it hurts"),
        "{text}"
    );
    assert!(text.contains("plugins.rs:"), "the place: {text}");

    let mut backend = linked(0).unwrap();
    let buf = backend.alloc(Role::Act, 4).unwrap();
    assert_eq!(backend.logits_rows(8, 100), 4);
    let broken =
        |r: Result| assert!(matches!(&r, Err(Fault::Other(text)) if text.contains("a wheel came off")), "{r:?}");
    broken(linear(&mut *backend));
    // Whatever is called from then on.
    broken(linear(&mut *backend));
    broken(backend.sync());
    broken(backend.upload(buf, 0, Host::F32(&[1.0])));
    broken(backend.alloc(Role::Act, 1).map(drop));
    backend.free(buf);
    // What it was is still known.
    assert_eq!(backend.info().name, "cpu");
    drop(backend);

    let mut backend = linked(2).unwrap();
    assert_eq!(linear(&mut *backend), Err(Fault::Unsupported("linear")));
    ALARM.store(9, Ordering::Relaxed);
    let told = backend.join(seat()).expect_err("it only tells");
    assert_eq!(told.to_string(), "here: join: 2 of 5, 8256, true, 7.5, 9");
    assert!(matches!(backend.invite(3), Err(Fault::Unsupported("invite"))));
    assert_eq!(backend.logits_rows(8, 100), 8);
    assert!(matches!(backend.sync(), Err(Fault::Other(text)) if text.contains("no rows")));
}

// ---- the exported side, called by a host that makes mistakes ----

#[test]
fn values_outside_an_enumeration_are_errors() {
    let mut table: abi::VTableV1 = bytemuck::Zeroable::zeroed();
    (table.size, table.version, table.threads) = (size_of::<abi::VTableV1>() as u32, abi::VERSION, 1);
    table.precision[0] = b'x' as _;
    // SAFETY: the table is set up as the interface asks; all that is called below gets its context, and pointers
    // to what lives until the end.
    unsafe {
        let table = &raw mut table;
        assert_eq!(panics(abi::VERSION, table), 0);
        let abi::VTableV1 { ctx, last_error, destroy, alloc, upload, linear, likelihood, .. } = *table;
        let said = |code| {
            assert_eq!(code, abi::Code::Other as i32);
            let mut text = [0; 128];
            let len = last_error.unwrap()(ctx, text.as_mut_ptr(), text.len());
            let bytes: Vec<u8> = text[..len].iter().map(|&c| c as u8).collect();
            String::from_utf8(bytes).unwrap()
        };
        let mut buf = Buf::NONE;
        assert_eq!(said(alloc.unwrap()(ctx, 99, 1, &raw mut buf)), "99 is no role of this version");
        let m: *const Mat = &NOTHING;
        assert_eq!(said(linear.unwrap()(ctx, m, m, m, 3, m)), "3 is no curve of this version");
        assert_eq!(said(linear.unwrap()(ctx, std::ptr::null(), m, m, 0, m)), "an argument is a null pointer");
        assert_eq!(
            said(upload.unwrap()(ctx, buf, 0, 9, std::ptr::null(), 0)),
            "9 is no type of host memory for this call"
        );
        let rows = Rows { indptr: buf, indices: buf, values: buf, users: buf, first: 0, count: 0 };
        let kind = abi::LikelihoodV1 { kind: 5, seen: 1.0, unseen: 1.0 };
        let code = likelihood.unwrap()(ctx, &raw const rows, &raw const kind, m, buf, buf, m);
        assert_eq!(said(code), "5 is no likelihood of this version");
        // A text that is longer than the room for it is cut, and its whole length told.
        let mut short = [1; 3];
        assert!(last_error.unwrap()(ctx, short.as_mut_ptr(), 2) > 2);
        assert_eq!(short, [b'5' as _, 0, 1]);
        assert!(last_error.unwrap()(ctx, std::ptr::null_mut(), 0) > 2);
        destroy.unwrap()(ctx);
    }
}

#[test]
fn a_host_of_another_version_gets_the_version_and_nothing_else() {
    for (host, room) in [(0, size_of::<abi::VTableV1>()), (2, size_of::<abi::VTableV1>()), (1, abi::SMALLEST - 1)] {
        let mut table: abi::VTableV1 = bytemuck::Zeroable::zeroed();
        (table.size, table.version) = (room as u32, host);
        // SAFETY: the first two fields are set, which is all that may be looked at.
        let code = unsafe { panics(host, &raw mut table) };
        assert_eq!(code, abi::Code::Unsupported as i32);
        assert_eq!(table.version, abi::VERSION);
        assert!(table.ctx.is_null() && table.info.is_none() && table.last_error.is_none());
    }
    // A host that knows fewer fields gets no more than these.
    let mut table: abi::VTableV1 = bytemuck::Zeroable::zeroed();
    (table.size, table.version) = (abi::SMALLEST as u32, abi::VERSION);
    // SAFETY: there is room for more than is promised.
    unsafe {
        assert_eq!(panics(abi::VERSION, &raw mut table), 0);
        assert!(table.top_k.is_some() && table.logits_rows.is_none() && table.broadcast.is_none());
        assert_eq!(table.size as usize, abi::SMALLEST);
        table.destroy.unwrap()(table.ctx);
    }
}

// ---- training ----

fn bits(tensors: &Tensors) -> Vec<u64> {
    tensors.0.values().flat_map(values).map(f64::to_bits).collect()
}

/// Two steps, so that moments count.
fn all_bits(backend: Box<dyn Backend>, case: &Case) -> Vec<u64> {
    let learned = Step::of(case).learn(&Device::new(backend), None, 2).unwrap();
    let of = |step: &Learned| {
        let losses: Vec<u64> = step.nll.iter().chain(&step.kl).map(|x| x.to_bits()).collect();
        [&bits(&step.after)[..], &bits(&step.gradient), &losses].concat()
    };
    learned.iter().flat_map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The border adds nothing and loses nothing.
    #[test]
    fn a_step_through_the_border_is_the_step_bit_for_bit(case in cases(Op::Step, false)) {
        let inside = all_bits(Box::new(plugin_rust::open(&asked("f32", 2)).unwrap()), &case);
        prop_assert_eq!(inside, all_bits(load(built::plugin_rust(), &asked("f32", 2)).unwrap(), &case));
    }

    /// The same with every entry of the table filled.
    #[test]
    fn a_step_of_the_cpu_through_the_border_is_the_step_bit_for_bit(case in cases(Op::Step, false)) {
        unsafe extern "C" fn cpu(version: u32, out: *mut abi::VTableV1) -> i32 {
            // SAFETY: what `link` promises an entry point.
            unsafe { export::fill(version, out, |request| Cpu::<f64>::new(request.threads)) }
        }
        let inside = all_bits(Box::new(Cpu::<f64>::new(Some(2)).unwrap()), &case);
        // SAFETY: the entry point is made by `export::fill`.
        let mut through = unsafe { link(cpu, "cpu", &asked("f64", 2)) }.unwrap();
        let (first, second) = (through.mark().unwrap(), through.mark().unwrap());
        prop_assert!(through.seconds(first, second).unwrap() > 0.0);
        prop_assert!(matches!(through.seconds(first, Mark(2)), Err(Fault::Other(_))));
        prop_assert_eq!(inside, all_bits(through, &case));
    }
}

/// A whole training on the backend: weights at the end, bit for bit, and the best metric.
fn trained(backend: Box<dyn Backend>) -> Vec<u64> {
    let data = planted::circles(4, 5).unwrap();
    let config = ModelConfig { hidden: vec![12], latent: 6, ..ModelConfig::of(Member::MultVae) };
    let settings = TrainConfig { batch: 8, epochs: 5, metric: "recall@1".into(), ..TrainConfig::paper() };
    let mut trainer = Trainer::new(&Device::new(backend), &config, &settings, &data, None).unwrap();
    trainer.run(&mut ()).unwrap();
    bits(&trainer.model().weights().unwrap())
}

#[test]
fn a_training_through_the_border_is_the_training_bit_for_bit() {
    let inside = trained(Box::new(plugin_rust::open(&asked("f32", 2)).unwrap()));
    assert!(inside.len() > 400);
    assert_eq!(inside, trained(load(built::plugin_rust(), &asked("f32", 2)).unwrap()));
    // Two backends of one library side by side, and one after the other, do not know of each other.
    let threads = [(); 2].map(|()| std::thread::spawn(|| trained(open(built::plugin_c()))));
    let [a, b] = threads.map(|thread| thread.join().unwrap());
    assert_eq!(a, b);
    assert_eq!(a, trained(open(built::plugin_c())));
}
