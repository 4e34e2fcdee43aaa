//! The proof that the rules can fail: programs that break one each, and one that breaks none.

use vaecf_cuda::blob::{Blob, Image};

use crate::{
    Toolchain,
    audit::{GPUS, Rule},
    difference, images,
    nvrtc::Source,
};

/// Kernels with a fault each, and the rule that must find it on every kind of GPU.
const FAULTS: &str = include_str!("planted/faults.cu");
const FOUND: [(&str, Rule); 5] = [
    ("spills", Rule::NoSpills),
    ("array", Rule::NoLocalMemory),
    ("array", Rule::NoLocalInstructions),
    ("gemm_f16_without", Rule::TensorCores),
    ("unbounded", Rule::LaunchBounds),
];

/// Takes every function of `prims.cuh`, whose instructions are not looked at before they are used.
const SOUND: &str = include_str!("planted/sound.cu");

/// Whether each planted fault is found, and none where there is none.
pub(crate) fn all_found(toolchain: &Toolchain, headers: &[Source]) -> Result<(), String> {
    let source = |name: &str, text: &str| Source { name: format!("{name}.cu"), text: text.into() };
    for program in toolchain.build(&[source("faults", FAULTS)], headers)? {
        for (name, rule) in FOUND {
            let breaches = program.functions.get(name).map(|function| function.breaches(name)).unwrap_or_default();
            if !breaches.iter().any(|breach| breach.rule == rule) {
                return Err(format!("the fault planted in {name} goes unnoticed for {}", program.gpu.target));
            }
        }
    }
    let sound = toolchain.build(&[source("sound", SOUND)], headers)?;
    if let Some((program, breach)) = sound.iter().find_map(|program| Some((program, program.breaches().next()?))) {
        return Err(format!("a sound program is blamed for {}: {}", program.gpu.target, breach.text));
    }
    changes_found(&images(&sound))
}

/// Whether a file is told from another that differs in a byte of the file, in one of its code, or in a name.
fn changes_found(sound: &[Image<'_>]) -> Result<(), String> {
    let bytes = Blob::pack(sound);
    let mut damaged = bytes.clone();
    *damaged.last_mut().expect("a file has bytes") ^= 1;
    let mut code = sound[0].code.to_vec();
    code[0] ^= 1;
    let changed = Blob::pack(&[&[Image { code: &code, ..sound[0] }], &sound[1..]].concat());
    let shorter = Blob::pack(&sound[1..]);
    let told = |other: &[u8], names: &str| difference(other, &bytes).is_some_and(|text| text.contains(names));
    let first = format!("sound.cu for {}", GPUS[0].target);
    match difference(&bytes, &bytes).is_none()
        && told(&damaged, "damaged")
        && told(&changed, &first)
        && told(&shorter, &first)
    {
        true => Ok(()),
        false => Err("a changed file goes unnoticed".into()),
    }
}
