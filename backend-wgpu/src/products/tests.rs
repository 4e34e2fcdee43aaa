//! Kernels of products, on whatever device there is.

use naga::{
    back::{msl, spv},
    valid::{Capabilities, ValidationFlags, Validator},
};

use super::{coop, template::Variant, trial::Trial, *};

/// Some device; none where the machine has none, which is said.
fn any(options: &Options) -> Option<Context> {
    match pollster::block_on(Context::open(options)) {
        Ok(context) => Some(context),
        Err(why) => {
            eprintln!("not tested: {why}");
            None
        }
    }
}

fn shape(which: Which, (m, n, k): (u32, u32, u32)) -> Shape {
    Shape { which, m, n, k }
}

/// The first one is compared with all others.
fn give_the_same_bits(precision: Precision, variants: &[Variant], sizes: &[(u32, u32, u32)]) {
    let Some(context) = any(&Options::default()) else { return };
    let first = Maker::Tiles(variants[0]);
    let small = shape(Which::Forward, (1, 1, 1));
    let mut trial = pollster::block_on(Trial::new(&context, precision, small, first)).expect("a second device");
    for (which, &size) in Which::ALL.into_iter().flat_map(|which| sizes.iter().map(move |size| (which, size))) {
        trial.reshape(shape(which, size)).expect("operands");
        let mut bits = |variant| -> Vec<u32> {
            let output = trial.output(Maker::Tiles(variant)).expect("a product");
            output.into_iter().map(f32::to_bits).collect()
        };
        let expected = bits(variants[0]);
        for &variant in &variants[1..] {
            assert!(bits(variant) == expected, "{which:?} {size:?} {precision:?}: {variant:?} differs");
        }
    }
}

#[test]
fn all_variants_give_the_same_bits() {
    let variants: Vec<_> =
        tune::LOW.into_iter().chain(tune::HIGH).filter(|variant| variant.memory() <= 16384).collect();
    give_the_same_bits(Precision::F32, &variants, &[(70, 90, 53), (3, 5, 0), (130, 129, 16)]);
}

#[test]
fn parts_of_all_variants_give_the_same_bits() {
    give_the_same_bits(Precision::F32, &[tune::HIGH[0], tune::HIGH[7], tune::LOW[0]], &[(33, 66, 1100)]);
}

#[test]
fn variants_in_half_precision_give_the_same_bits() {
    give_the_same_bits(Precision::F16, &[tune::HIGH[0], tune::HIGH[7], tune::LOW[0]], &[(70, 90, 53), (7, 6, 1100)]);
}

#[test]
fn kernels_that_are_wrong_are_found_out() {
    let Some(context) = any(&Options::default()) else { return };
    let agree = |maker| pollster::block_on(coop::agree(&context, Precision::F16, [maker].into_iter()));
    let variant = Variant::new(64, 32, 16, 8, 4);
    assert_eq!(agree(Maker::Tiles(variant)), Ok(()));
    assert!(agree(Maker::Wrong(variant)).is_err_and(|why| why.contains("wrong results")));
    let refused = agree(Maker::Tiles(Variant::new(256, 256, 64, 16, 16)));
    assert!(refused.as_ref().is_err_and(|why| why.contains("do not work")), "{refused:?}");
}

#[test]
fn kernels_with_matrices_compile() {
    let options = spv::Options { lang_version: (1, 6), ..spv::Options::default() };
    let all = coop::all();
    assert!(all.len() >= 6);
    for matrices in all {
        for (which, ends) in Which::ALL.into_iter().flat_map(|which| [(which, Ends::Finished), (which, Ends::Part)]) {
            let text = Maker::Matrices(matrices).text(Precision::F16, which, ends);
            let module = naga::front::wgsl::parse_str(&text)
                .unwrap_or_else(|error| panic!("{matrices:?} {which:?}: {}", error.emit_to_string(&text)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::all())
                .validate(&module)
                .unwrap_or_else(|error| panic!("{matrices:?} {which:?}: {}", error.emit_to_string(&text)));
            let words = spv::write_vec(&module, &info, &options, None).expect("SPIR-V");
            assert!(words.len() > 1000);
            if matrices.is_for_metal() {
                let options =
                    msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
                let (text, _) =
                    msl::write_string(&module, &info, &options, &msl::PipelineOptions::default()).expect("MSL");
                assert!(text.contains("simdgroup_multiply_accumulate") && !text.contains("16x16"), "{text}");
            }
        }
    }
}

#[test]
fn variants_are_measured_once_and_kept_in_a_file() {
    let folder = std::env::temp_dir().join(format!("vaecf-wgpu-{}", std::process::id()));
    let file = folder.join("deep").join("tuning.json");
    let options = Options { tuning: Some(file.clone()), tune_software: true, ..Options::default() };
    let Some(context) = any(&options) else { return };
    let size = shape(Which::Forward, (2, 5000, 700));
    let mut tuning = Tuning::new(&context, &options);
    let variant = tuning.variant(&context, Precision::F32, size);
    assert!(tune::LOW.contains(&variant));
    assert_eq!(tuning.variant(&context, Precision::F32, size), variant);
    let text = std::fs::read_to_string(&file).expect("a file");
    assert!(text.contains(&context.found.name) && text.contains("Forward 2x4096x512"), "{text}");
    // A file that is damaged is as good as none.
    std::fs::write(&file, "{ damaged").expect("a file");
    assert_eq!(Tuning::new(&context, &options).variant(&context, Precision::F32, size), variant);
    drop(std::fs::remove_dir_all(folder));
}

#[test]
fn software_is_not_measured() {
    let Some(context) = any(&Options::default()) else { return };
    if context.found.software {
        let mut tuning = Tuning::new(&context, &Options::default());
        let variant = tuning.variant(&context, Precision::F32, shape(Which::Forward, (500, 2000, 600)));
        assert_eq!(variant, tune::HIGH[0]);
    }
}
