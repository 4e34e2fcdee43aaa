//! Which variant of the template is the fastest for which sizes: measured on the device itself, when such sizes come
//! first, and remembered. All variants give the same bits, so nothing but time hangs on it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use vaecf_core::backend::Result;

use super::{Maker, Shape, template::Variant, trial::Trial};
use crate::{Options, Precision, context::Context};

/// Products of two numbers from which on it matters how they are made.
const WORTH_IT: u64 = 1 << 22;
/// Products of two numbers that a measurement needs at the most.
const ENOUGH: u64 = 1 << 31;
/// Seconds that a product may take to be measured as it is, and that a measurement should take.
const LONG: f64 = 5e-3;
const EXACT: f64 = 2e-3;

/// For outputs of a few rows: what counts is how fast the second operand is read.
pub(crate) const LOW: [Variant; 6] = [
    Variant::new(4, 128, 16, 4, 4),
    Variant::new(4, 256, 8, 4, 4),
    Variant::new(8, 128, 16, 4, 4),
    Variant::new(16, 64, 32, 4, 4),
    Variant::new(16, 128, 16, 4, 4),
    Variant::new(32, 32, 32, 4, 4),
];

/// For all others. The last one needs more memory than every device has.
pub(crate) const HIGH: [Variant; 9] = [
    Variant::new(64, 64, 16, 8, 8),
    Variant::new(128, 128, 16, 8, 8),
    Variant::new(128, 128, 8, 8, 8),
    Variant::new(128, 64, 16, 8, 8),
    Variant::new(64, 128, 16, 8, 8),
    Variant::new(64, 64, 16, 8, 4),
    Variant::new(64, 64, 16, 4, 4),
    Variant::new(32, 32, 32, 4, 4),
    Variant::new(128, 128, 32, 8, 8),
];

/// What a variant was found for, and which: the content of the file.
type Known = BTreeMap<String, Variant>;

/// What this process has found.
static KNOWN: Mutex<Known> = Mutex::new(Known::new());

/// What is known about a device.
#[derive(Debug, Default)]
pub(crate) struct Tuning {
    /// The device, its driver and this version of the shaders; none where nothing is measured.
    device: Option<String>,
    file: Option<PathBuf>,
    known: Known,
}

impl Tuning {
    pub(crate) fn new(context: &Context, options: &Options) -> Self {
        let found = &context.found;
        let measures = !cfg!(target_arch = "wasm32") && (!found.software || options.tune_software);
        let device = format!("{}, {}, {}, {}", found.name, found.driver, found.through, env!("CARGO_PKG_VERSION"));
        let file = options.tuning.clone();
        let known = file.as_deref().map(read).unwrap_or_default();
        Self { device: measures.then_some(device), file, known }
    }

    /// The variant for a product.
    pub(crate) fn variant(&mut self, context: &Context, precision: Precision, shape: Shape) -> Variant {
        let class = class(shape);
        let Some(device) = self.device.as_ref().filter(|_| class.work() >= WORTH_IT) else { return fixed(shape) };
        let Shape { which, m, n, k } = class;
        let key = format!("{device}, {} {which:?} {m}x{n}x{k}", precision.name());
        let allowed = variants(context, class);
        let known = self.known.get(&key).filter(|variant| allowed.contains(variant));
        if let Some(&variant) = known {
            return variant;
        }
        // One after the other: two measurements would disturb each other.
        let mut here = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let variant = match here.get(&key) {
            Some(&variant) => variant,
            None => {
                // What could not be measured now may be another time.
                let Some(variant) = measure(context, precision, class, &allowed) else { return fixed(shape) };
                here.insert(key.clone(), variant);
                if let Some(file) = &self.file {
                    // If this fails it is measured another time.
                    let _ = write(file, &key, variant);
                }
                variant
            }
        };
        self.known.insert(key, variant);
        variant
    }
}

/// The sizes that stand for all that are near them: the next powers of two.
fn class(shape: Shape) -> Shape {
    let near = |size: u32| 1 << f64::from(size.max(1)).log2().round().min(31.0) as u32;
    Shape { which: shape.which, m: near(shape.m), n: near(shape.n), k: near(shape.k) }
}

/// Where nothing was measured: what software drivers like best.
fn fixed(shape: Shape) -> Variant {
    match shape.m {
        ..=4 => Variant::new(4, 128, 16, 4, 4),
        5..=16 => Variant::new(16, 64, 32, 4, 4),
        _ if shape.work() < 4 * WORTH_IT => Variant::new(32, 32, 32, 4, 4),
        _ => Variant::new(64, 64, 16, 8, 8),
    }
}

/// Those that a device has room for.
fn variants(context: &Context, class: Shape) -> Vec<Variant> {
    let limits = &context.limits;
    let all = if class.m <= 16 { &LOW[..] } else { &HIGH[..] };
    let fits = |variant: &&Variant| {
        variant.memory() <= limits.max_compute_workgroup_storage_size
            && variant.threads()
                <= limits.max_compute_invocations_per_workgroup.min(limits.max_compute_workgroup_size_x)
    };
    all.iter().filter(fits).copied().collect()
}

/// The fastest, if any can be measured.
fn measure(context: &Context, precision: Precision, class: Shape, variants: &[Variant]) -> Option<Variant> {
    let mut shape = class;
    while shape.work() > ENOUGH {
        shape = smaller(shape);
    }
    let start = |shape, variant| pollster::block_on(Trial::new(context, precision, shape, Maker::Tiles(variant)));
    let (mut trial, mut best) = (None, None::<(f64, Variant)>);
    for &variant in variants {
        // A trial may have lost its device.
        let mut on = match trial.take() {
            Some(trial) => trial,
            None => start(shape, variant).ok()?,
        };
        let least = best.map_or(f64::INFINITY, |(seconds, _)| seconds);
        let Ok(seconds) = time(&mut on, variant, &mut shape, least) else { continue };
        if seconds < least {
            best = Some((seconds, variant));
        }
        trial = Some(on);
    }
    best.map(|(_, variant)| variant)
}

/// Half of a product: of its output, as long as that is large, else of its sums.
fn smaller(shape: Shape) -> Shape {
    let Shape { which, m, n, k } = shape;
    match () {
        () if u64::from(m) * u64::from(n) <= 1 << 20 => Shape { which, m, n, k: k / 2 },
        () if m > n => Shape { which, m: m / 2, n, k },
        () => Shape { which, m, n: n / 2, k },
    }
}

/// Seconds that a variant takes, the median of some; not exact where it is far slower than the best. The first one may
/// take less of the product, and so do all after it.
fn time(trial: &mut Trial, variant: Variant, shape: &mut Shape, best: f64) -> Result<f64> {
    let maker = Maker::Tiles(variant);
    // The first time, it is compiled.
    trial.seconds(maker, 1)?;
    let mut once = trial.seconds(maker, 1)?;
    while best.is_infinite() && once > LONG && shape.work() > WORTH_IT {
        *shape = smaller(smaller(*shape));
        trial.reshape(*shape)?;
        once = trial.seconds(maker, 1)?;
    }
    if once > 4.0 * best {
        return Ok(once);
    }
    let times = (EXACT / once).ceil().clamp(1.0, 32.0) as u32;
    let mut all = [0.0; 3];
    for seconds in &mut all {
        *seconds = trial.seconds(maker, times)? / f64::from(times);
    }
    all.sort_by(f64::total_cmp);
    Ok(all[1])
}

/// What a file holds; nothing where it is damaged, or not there.
fn read(file: &Path) -> Known {
    fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Adds a line to a file. It is replaced as a whole, so that another process reads the old one or the new one.
fn write(file: &Path, key: &str, variant: Variant) -> std::io::Result<()> {
    let mut known = read(file);
    known.insert(key.to_owned(), variant);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    fs::write(&name, serde_json::to_vec_pretty(&known)?)?;
    fs::rename(&name, file).inspect_err(|_| drop(fs::remove_file(&name)))
}
