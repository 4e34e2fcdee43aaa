//! What a device does at best, measured through the contract alone: what [`Backend::ceilings`] of any device can use.

use std::time::Instant;

use crate::backend::{Backend, Curve, Fault, Host, Mat, Result, Role};

/// What a measurement has to take for the clock to be exact, in seconds.
const LONG: f64 = 5e-3;
/// Times that each is measured; the best counts, because a limit is what can be reached.
const TIMES: usize = 5;
/// Bytes that a copy begins with, and sides of the matrices of a product at the least and at the most.
const COPIED: u64 = 1 << 20;
const SIDES: [u32; 2] = [256, 8192];

/// The shortest of several runs, in seconds; one before them does not count. By the device's clock where it has one.
fn best<B: Backend + ?Sized>(backend: &mut B, run: &mut dyn FnMut(&mut B) -> Result) -> Result<f64> {
    run(backend)?;
    let mut best = f64::INFINITY;
    for _ in 0..TIMES {
        let time = match backend.mark() {
            Ok(from) => {
                run(backend)?;
                let to = backend.mark()?;
                backend.seconds(from, to)?
            }
            Err(Fault::Unsupported(_)) => {
                backend.sync()?;
                let from = Instant::now();
                run(backend)?;
                backend.sync()?;
                from.elapsed().as_secs_f64()
            }
            Err(fault) => return Err(fault),
        };
        best = best.min(time);
    }
    Ok(best)
}

/// Bytes per second, read and written together, of a copy that is long enough to be measured, of `most` bytes at the
/// most. `copy` is given a number of bytes.
///
/// # Errors
/// What the device reports.
pub fn copy_rate<B: Backend + ?Sized>(
    backend: &mut B,
    most: u64,
    mut copy: impl FnMut(&mut B, u64) -> Result,
) -> Result<f64> {
    let mut bytes = most.min(COPIED);
    loop {
        let time = best(backend, &mut |backend| copy(backend, bytes))?;
        if time >= LONG || bytes == most {
            return Ok(2.0 * bytes as f64 / time);
        }
        bytes = (2 * bytes).min(most);
    }
}

/// FLOP per second of a square product that is long enough to be measured.
///
/// # Errors
/// What the device reports.
pub fn product_rate<B: Backend + ?Sized>(backend: &mut B) -> Result<f64> {
    let [mut side, most] = SIDES;
    loop {
        let time = product_time(backend, side)?;
        if time >= LONG || side == most {
            return Ok(2.0 * f64::from(side).powi(3) / time);
        }
        side *= 2;
    }
}

fn product_time<B: Backend + ?Sized>(backend: &mut B, side: u32) -> Result<f64> {
    let len = u64::from(side) * u64::from(side);
    let mut bufs = Vec::new();
    let mut time = Ok(0.0);
    for role in [Role::Act, Role::Weight, Role::Weight, Role::Act] {
        match backend.alloc(role, if bufs.len() == 2 { side.into() } else { len }) {
            Ok(buf) => bufs.push(buf),
            Err(fault) => time = Err(fault),
        }
    }
    if let (Ok(_), &[x, w, b, y]) = (&time, &bufs[..]) {
        let mat = |buf, rows| Mat { buf, rows, cols: side, stride: side, offset: 0 };
        // Numbers as they come up, none of them zero.
        let some: Vec<f32> = (0..len).map(|i| (i % 61) as f32 / 61.0 - 0.51).collect();
        time = [x, w].iter().try_for_each(|&buf| backend.upload(buf, 0, Host::F32(&some))).and_then(|()| {
            let mut product =
                |backend: &mut B| backend.linear(mat(x, side), mat(w, side), mat(b, 1), Curve::Identity, mat(y, side));
            best(backend, &mut product)
        });
    }
    bufs.into_iter().for_each(|buf| backend.free(buf));
    time
}
