//! What this machine does at best: a pass over memory far beyond its caches, and the `gemm` crate on products of the size
//! that the output layer is made of.

use std::{hint::black_box, time::Instant};

use rayon::ThreadPool;
use vaecf_core::{
    backend::{Buf, Ceilings, Fault, Result},
    math::Real,
};

use crate::{
    gemm::{Factor, Target, multiply},
    memory::{Table, View, ViewMut},
};

/// Bytes that the pass reads, and writes.
const PASSED: usize = 1 << 28;

/// Times that each is measured; the best counts, because a limit is what can be reached.
const TIMES: usize = 5;

/// Rows of the batch, units, and items of the products.
const SHAPE: [usize; 3] = [512, 640, 2048];

pub(crate) fn ceilings<T: Real>(pool: &ThreadPool) -> Result<Ceilings> {
    Ok(Ceilings { copy: copy(pool)?, products: products::<T>(pool)? })
}

/// Elements that are no zeros, which would be faster; none where the memory is not there.
fn filled<T: Real>(len: usize) -> Result<Vec<T>> {
    let mut all = Vec::new();
    let wanted = (len * size_of::<T>()) as u64;
    all.try_reserve_exact(len).map_err(|_| Fault::OutOfMemory { device: "the host".into(), wanted })?;
    all.extend((0..len).map(|at| T::of((at % 61) as f64 / 61.0 - 0.5)));
    Ok(all)
}

/// Bytes per second, read and written together, in memory of the kind that buffers have. The pass is in place: a copy
/// to elsewhere makes the processor read what it overwrites, too, which nobody asked for.
fn copy(pool: &ThreadPool) -> Result<f64> {
    let (mut table, len) = (Table::<f64>::new("floats"), PASSED / size_of::<f64>());
    let full = || Fault::OutOfMemory { device: "the host".into(), wanted: PASSED as u64 };
    table.insert(1, len).ok_or_else(full)?;
    let all = table.range(Buf(1), 0, len)?;
    let part = len.div_ceil(pool.current_num_threads());
    let best = best(|| {
        pool.scope(|scope| {
            for part in all.chunks_mut(part) {
                scope.spawn(|_| black_box(part).iter_mut().for_each(|x| *x += 1.0));
            }
        });
    });
    Ok(2.0 * PASSED as f64 / best)
}

/// FLOP per second of the best of the three products of a layer, one on each thread.
fn products<T: Real>(pool: &ThreadPool) -> Result<f64> {
    let [batch, units, items] = SHAPE;
    let threads = pool.current_num_threads();
    let [mut g, mut w, mut f] = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..threads {
        g.push(filled::<T>(batch * units)?);
        w.push(filled::<T>(units * items)?);
        f.push(filled::<T>(batch * items)?);
    }
    let mut least = f64::INFINITY;
    for product in 0..3 {
        let time = best(|| {
            pool.scope(|scope| {
                for ((g, w), f) in g.iter_mut().zip(&mut w).zip(&mut f) {
                    scope.spawn(move |_| match product {
                        0 => times(f, items, plain(g, batch, units), plain(w, units, items)),
                        1 => times(w, items, turned(g, batch, units), plain(f, batch, items)),
                        _ => times(g, units, plain(f, batch, items), turned(w, units, items)),
                    });
                }
            });
        });
        least = least.min(time);
    }
    Ok(2.0 * (batch * units * items * threads) as f64 / least)
}

fn plain<T: Real>(data: &[T], rows: usize, cols: usize) -> Factor<'_, T> {
    View { data, rows, cols, stride: cols }.plain()
}

fn turned<T: Real>(data: &[T], rows: usize, cols: usize) -> Factor<'_, T> {
    View { data, rows, cols, stride: cols }.transposed()
}

fn times<T: Real>(c: &mut [T], cols: usize, a: Factor<'_, T>, b: Factor<'_, T>) {
    let mut c = ViewMut { rows: c.len() / cols, data: c, cols, stride: cols };
    multiply(&mut Target::of(&mut c), false, a, b, 1);
}

/// The shortest of several runs, in seconds; one before them does not count.
fn best(mut run: impl FnMut()) -> f64 {
    run();
    let seconds = (0..TIMES).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    seconds.fold(f64::INFINITY, f64::min)
}
