//! The faults.

use std::fs;

use vaecf_cuda::Precision::{self, F16, F32, Tf32};
use vaecf_tests::Op;

use crate::hunts::{Fault, Row};

/// The kernels that are compiled with a fault.
pub(crate) fn kernel(fault: &Fault<Precision>) -> &'static str {
    match fault.place.strip_suffix(".cu") {
        Some(kernel) => kernel,
        None => match fault.op {
            Op::EncodeSparse => "encode_sparse",
            Op::EncodeSparseGrad => "encode_sparse_grad",
            Op::SampleLatent | Op::SampleLatentGrad => "sample_latent",
            Op::Likelihood => "likelihood",
            Op::Adam => "adam",
            Op::TopK => "top_k",
            _ => "gemm",
        },
    }
}

/// A source with a fault.
pub(crate) fn in_source(fault: &Fault<Precision>, source: &str) -> Result<String, String> {
    let Fault { place, what, which, instead, .. } = *fault;
    let mut places = source.match_indices(what).map(|(at, _)| at);
    let only = source.matches(what).count() == 1;
    let at = match which {
        None if !only => None,
        which => places.nth(which.unwrap_or(0)),
    };
    let at = at.ok_or_else(|| format!("{what:?} is not a place in {place}"))?;
    Ok([&source[..at], instead, &source[at + what.len()..]].concat())
}

/// All of them.
pub(crate) fn faults() -> Vec<Fault<Precision>> {
    FAULTS.iter().map(Fault::of).chain(unordered()).collect()
}

/// Each barrier and each wait left out.
fn unordered() -> impl Iterator<Item = Fault<Precision>> {
    let kernels = crate::built::kernels();
    UNORDERED.iter().flat_map(move |&(op, file, what, needless)| {
        let source = fs::read_to_string(kernels.join(file)).expect("a kernel");
        let all = source.matches(what).count();
        (0..all).filter(|which| !needless.contains(which)).map(move |which| {
            let name = format!("{what} {} of {all} is left out", which + 1);
            // Sums and maxima over a block are those of the loss.
            let op = if file == "common.cuh" && which < 4 { Op::Likelihood } else { op };
            Fault { op, on: F32, place: file, what, which: Some(which), instead: ";", name }
        })
    })
}

const BARRIER: &str = "sync_block();";

/// In which files; and those, counted from 0, without which nothing goes wrong, because there is another barrier
/// before the same memory is used again, or each thread reads what it wrote itself.
///
/// The fences of `adam.cu` are not among them: they order atomics, which the emulator does in the order of the source.
const UNORDERED: &[(Op, &str, &str, &[usize])] = &[
    // Places in a list are found with two barriers, and before the last columns a team is the whole block.
    (Op::EncodeSparse, "encode_sparse.cu", BARRIER, &[1, 3]),
    (Op::EncodeSparseGrad, "encode_sparse_grad.cu", BARRIER, &[1, 4]),
    (Op::EncodeSparseGrad, "encode_sparse_grad.cu", "sync_warp();", &[]),
    (Op::LinearGradWeight, "columns.cu", BARRIER, &[]),
    (Op::Linear, "gemm.cu", BARRIER, &[]),
    (Op::Linear, "gemm.cu", "copy_wait<STAGES - 2>();", &[]),
    (Op::Linear, "gemm.cu", "copy_commit();", &[]),
    // A tile's elements are used by the thread that fetched them, until the next barrier.
    (Op::Likelihood, "likelihood.cu", BARRIER, &[0]),
    (Op::Adam, "adam.cu", BARRIER, &[]),
    // Keys are read after the histogram is cleared, ranks are written after ties are counted, and a round begins with
    // nothing that the last one reads.
    (Op::TopK, "top_k.cu", BARRIER, &[1, 6, 9]),
    // Tiles are fetched between two maxima.
    (Op::EncodeSparse, "common.cuh", BARRIER, &[2]),
];

#[rustfmt::skip]
const FAULTS: &[Row<Precision>] = &[
    // ---- what all share ----
    (Op::EncodeSparse, F32, "common.cuh", "item & 1 ? words.at[1] : words.at[0]", "item & 1 ? words.at[0] : words.at[1]", "two words of a draw are swapped"),
    (Op::EncodeSparse, F32, "common.cuh", "item & 2 ? high : low", "item & 2 ? low : high", "high and low words of a draw are swapped"),
    (Op::EncodeSparse, F32, "common.cuh", "< noise.threshold", "<= noise.threshold", "a draw that is the threshold keeps"),
    (Op::EncodeSparse, F32, "common.cuh", "k1 += 0xBB67AE85u", "k1 += 0xBB67AE86u", "a constant of the noise is wrong"),
    (Op::EncodeSparse, F32, "common.cuh", "round < 10", "round < 9", "the noise has a round too few"),
    (Op::EncodeSparse, F32, "common.cuh", "noise.seed_high, noise.seed_low, noise.stream", "0, noise.seed_low, noise.stream", "half of the seed is ignored"),
    (Op::EncodeSparse, F32, "common.cuh", "philox(update, user, block", "philox(update, block, user", "user and element are swapped"),
    (Op::SampleLatent, F32, "common.cuh", "out[half] = radius * cosine;\n        out[half + 1] = radius * sine;", "out[half] = radius * sine;\n        out[half + 1] = radius * cosine;", "normals are swapped"),
    (Op::SampleLatent, F32, "common.cuh", "float(a + 1)", "float(a)", "uniform draws begin at zero"),
    (Op::SampleLatent, F32, "common.cuh", "words.at[half + 1] >> 8", "words.at[half] >> 8", "a normal draw uses one word twice"),
    (Op::EncodeSparse, F32, "common.cuh", "if (lane_of() >= by)", "if (lane_of() > by)", "places in a warp are wrong"),
    (Op::EncodeSparse, F32, "common.cuh", "if (warp < warp_of())", "if (warp + 1 < warp_of())", "places in a block are wrong"),
    (Op::Likelihood, F32, "common.cuh", "u32 warp = 1; warp <", "u32 warp = 2; warp <", "a warp has no say in the maximum"),
    (Op::Likelihood, F32, "common.cuh", "++warp) sum += scratch[warp]", "++warp) sum += warp == 3 ? 0.0f : scratch[warp]", "a warp is missing in the sum"),
    (Op::EncodeSparse, F32, "common.cuh", "sum += x.values[e] * x.values[e]", "sum += x.values[e]", "the norm is a sum"),
    (Op::EncodeSparse, F32, "common.cuh", "return square > 0.0f ? rsqrtf(square) : 0.0f", "return rsqrtf(square)", "a row of weights that are zero is infinite"),
    (Op::TopK, F32, "common.cuh", "x.indices[middle] < item", "x.indices[middle] <= item", "the lower bound is the upper"),
    (Op::TopK, F32, "common.cuh", "if (!x.indptr) return Row{user, 0, 0};", "", "a history that is absent is read"),
    (Op::EncodeSparse, F32, "common.cuh", "u32 user = x.users ? x.users[position] : position;", "u32 user = position;", "the list of users is ignored"),
    (Op::LinearGradInput, F32, "common.cuh", "1.0f - y * y", "1.0f - y", "the slope of tanh is wrong"),
    (Op::LinearGradInput, F32, "common.cuh", "y > 0.0f ? 1.0f : 0.0f", "y >= 0.0f ? 1.0f : 0.0f", "the slope of relu at zero is one"),
    (Op::Linear, F32, "common.cuh", "x < 0.0f ? 0.0f : x", "x < 0.0f ? 0.01f * x : x", "relu leaks"),
    (Op::Likelihood, F32, "prims.cuh", "mask = 16; mask > 0; mask /= 2) x += swap_lanes(x, mask)", "mask = 8; mask > 0; mask /= 2) x += swap_lanes(x, mask)", "half a warp is missing in the sum"),
    (Op::Likelihood, F32, "prims.cuh", "mask = 16; mask > 0; mask /= 2) x = larger", "mask = 8; mask > 0; mask /= 2) x = larger", "half a warp has no say in the maximum"),

    // ---- the first layer ----
    (Op::EncodeSparse, F32, "encode_sparse.cu", "e < place.all", "e + 1 < place.all", "the last event is dropped"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "factor * value_at(x, event)", "factor", "weights of events are ignored"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "* noise.inverse_keep", "", "what is kept is not scaled up"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "tile < row.end; tile", "tile < smaller(row.end, row.start + 1); tile", "events beyond the first list are dropped"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "from < vectors", "from < smaller(vectors, THREADS)", "columns beyond the threads are dropped"),
    (Op::EncodeSparse, F16, "encode_sparse.cu", "from < vectors", "from < smaller(vectors, THREADS)", "columns beyond the threads are dropped, in half"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "bend(curve, total)", "total", "the curve is left out"),
    (Op::EncodeSparse, F16, "encode_sparse.cu", "widen(bias.at[i])", "0.0f", "the bias is dropped"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "t < teams", "t + 1 < teams", "the last team's sums are dropped"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "teams = THREADS / wide", "teams = (THREADS + wide - 1) / wide", "a team that is not whole takes events"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "x.first + step->first + blockIdx.x", "x.first + blockIdx.x", "the step's window is ignored"),
    (Op::EncodeSparse, F32, "encode_sparse.cu", "keeps(noise, update, row.user, item)", "keeps(noise, update, blockIdx.x, item)", "noise is counted by the row of the batch"),

    // ---- its gradient ----
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "1u << (r % 32)", "1u << ((r + 1) % 32)", "a mark is off by one bit"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "if (r >= x.count) return;", "if (r > x.count) return;", "a row beyond the batch is marked"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "square += value * value", "square += value", "the norm is a sum"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "rsqrtf(square) * noise.inverse_keep", "rsqrtf(square)", "what is kept is not scaled up"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "square > 0.0f ? rsqrtf(square) * noise.inverse_keep : 0.0f", "rsqrtf(square) * noise.inverse_keep", "a row of weights that are zero is infinite"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "keeps(noise, step->update, row.user, item)", "keeps(noise, step->update + 1, row.user, item)", "another mask than before"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "x.values[lower_bound(x, row, item)]", "x.values[row.start]", "the weight is that of another event"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "list, before - mine)", "list, 0)", "an item's rows are listed over each other"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "if (lane_of() == 0) heavy[1 + atomic_add(&heavy[0], 1)] = item;", "", "items with many rows are dropped"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "if (n > LIST) {", "if (n >= LIST) {", "an item with as many rows as a list holds is dropped"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "task += gridDim.x", "task += gridDim.x - 1", "items with many rows are summed twice"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "task < heavy[0] * slabs;", "task < smaller(heavy[0] * slabs, gridDim.x);", "items beyond the blocks are dropped"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "task < heavy[0] * slabs;", "task + 1 < heavy[0] * slabs;", "the last columns of an item are dropped"),
    (Op::EncodeSparseGrad, F16, "encode_sparse_grad.cu", "from = task % slabs * SLAB", "from = 0", "only the first columns of an item are summed"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "tile < words; tile", "tile < 1; tile", "rows beyond the first list are dropped"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "(words + THREADS - 1) / THREADS", "1", "marks beyond the threads are dropped"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "each = (words + 31) / 32", "each = 1", "marks beyond the warp are dropped"),
    (Op::EncodeSparseGrad, F32, "encode_sparse_grad.cu", "col < cols; col += 32 * SIZE", "col < smaller(cols, 32 * SIZE); col += 32 * SIZE", "columns beyond the threads are dropped"),

    // ---- sums of columns ----
    (Op::LinearGradWeight, F32, "columns.cu", "r < end", "r + 1 < end", "the last row is dropped"),
    (Op::LinearGradWeight, F32, "columns.cu", "at < cols", "at + 1 < cols", "the last column is dropped"),
    (Op::LinearGradWeight, F32, "columns.cu", "p < parts", "p + 1 < parts", "the last part is dropped"),
    (Op::LinearGradWeight, F16, "columns.cu", "sum[i] += widen(v.at[i])", "sum[i] = widen(v.at[i])", "rows are not added up"),
    (Op::LinearGradWeight, F16, "columns.cu", "warp < WARPS", "warp + 1 < WARPS", "the last warp's sums are dropped"),
    (Op::LinearGradWeight, F32, "columns.cu", "c = blockIdx.x * 256 + threadIdx.x;", "c = threadIdx.x;", "the second block is that of the first"),

    // ---- products ----
    (Op::Linear, F16, "gemm.cu", "(row >> 1 & 3)", "(row >> 1 & 7)", "places of rows along k collide"),
    (Op::Linear, F16, "gemm.cu", "row & 7 :", "row & 31 :", "places of rows across k collide"),
    (Op::Linear, F32, "gemm.cu", "(row & 3) * 2)", "(row & 3) * 16)", "places of rows of f32 collide"),
    (Op::Linear, F16, "gemm.cu", "r < rows && c < cols", "c < cols", "rows beyond the matrix are fetched"),
    (Op::Linear, F16, "gemm.cu", "smaller(cols - c, PER_CHUNK)", "PER_CHUNK", "the tail of k is not zero"),
    (Op::LinearGradWeight, F16, "gemm.cu", "r < rows && c < cols", "r < larger(rows, 1u) + 7 && c < cols", "rows beyond k are fetched"),
    (Op::Linear, F32, "gemm.cu", "copy_wait<STAGES - 2>", "copy_wait<STAGES - 1>", "a tile is used before it is there"),
    (Op::Linear, F32, "gemm.cu", "fetch(step + STAGES - 1)", "fetch(step + STAGES)", "tiles are skipped"),
    (Op::Linear, F16, "gemm.cu", "half * 2 + which / 2)", "half * 2 + which % 2)", "fragments of a are mixed up"),
    (Op::LinearGradInput, F16, "gemm.cu", "half * 2 + which % 2)", "half * 2 + which / 2)", "fragments of b along k are mixed up"),
    (Op::LinearGradWeight, F16, "gemm.cu", "half * 16 + which / 2 * 8 + r", "half * 16 + which % 2 * 8 + r", "fragments of a across k are mixed up"),
    (Op::Linear, F16, "gemm.cu", "half * 16 + which % 2 * 8 + r", "half * 16 + which / 2 * 8 + r", "fragments of b across k are mixed up"),
    (Op::LinearGradWeight, Tf32, "gemm.cu", "side + g + i % 2 * 8", "side + g + i / 2 * 8", "fragments of a of tf32 are mixed up"),
    (Op::Linear, Tf32, "gemm.cu", "side + g + i / 2 * 8", "side + g + i % 2 * 8", "fragments of b of tf32 are mixed up"),
    (Op::Linear, F16, "gemm.cu", "j % 2 * 2]", "0]", "every second tile of b is that before"),
    (Op::Linear, F32, "gemm.cu", "k < Tile<float, A>::DEPTH", "k + 1 < Tile<float, A>::DEPTH", "the last of k is dropped"),
    (Op::Linear, F16, "gemm.cu", "half < 2", "half < 1", "half of k is dropped"),
    (Op::Linear, F32, "gemm.cu", "if (p.bias) {", "if (false) {", "the bias is dropped"),
    (Op::Linear, F16, "gemm.cu", "if (p.curve != IDENTITY)", "if (false)", "the curve is left out"),
    (Op::LinearGradInput, F32, "gemm.cu", "if (p.x) {", "if (false) {", "the slope is left out"),
    (Op::LinearGradInput, F32, "gemm.cu", "row * p.x_stride + col + i", "row * p.x_stride + col", "the slope is that of another column"),
    (Op::Linear, F32, "gemm.cu", "row + half + r >= p.m ||", "row + half + r + 1 >= p.m ||", "the last row is dropped"),
    (Op::Linear, F32, "gemm.cu", "|| col + c >= p.n", "|| col + c + 1 >= p.n", "the last column is dropped"),
    (Op::Linear, F32, "gemm.cu", "half < SIDE; half", "half < HALF; half", "half of a tile is dropped"),
    (Op::Linear, F32, "gemm.cu", "row = blockIdx.y * SIDE", "row = 0 * SIDE", "the second tile of rows is the first"),
    (Op::Linear, F32, "gemm.cu", "col = blockIdx.x * SIDE", "col = 0 * SIDE", "the second tile of columns is the first"),
    (Op::Linear, F32, "gemm.cu", "smaller(k_first + p.k_each, p.k)", "smaller(k_first + p.k_each, p.k - 1)", "the last of k is dropped by its block"),
    (Op::Linear, F32, "gemm.cu", "z < parts", "z + 1 < parts", "the last share of k is dropped"),
    (Op::Linear, F16, "gemm.cu", "if (i >= u64(p.m) * groups)", "if (i + 1 >= u64(p.m) * groups)", "the last group of shares is dropped"),
    (Op::LinearGradInput, F16, "gemm.cu", "(u64(z) * p.m + row) * part_stride(p) + col", "(u64(z) * p.m + row) * p.n + col", "shares are read without their padding"),
    (Op::LinearGradWeight, F16, "gemm.cu", "gemm<TYPE, float, ACROSS, ACROSS>", "gemm<TYPE, OUT, ACROSS, ACROSS>", "gradients are narrow"),

    // ---- the latent sample ----
    (Op::SampleLatent, F32, "sample_latent.cu", "expf(0.5f * v) * eps[i]", "expf(v) * eps[i]", "the deviation is the variance"),
    (Op::SampleLatent, F32, "sample_latent.cu", "- 1.0f - v)", "- 1.0f + v)", "the divergence is wrong"),
    (Op::SampleLatent, F32, "sample_latent.cu", "kl[position * kl_stride]", "kl[blockIdx.x * kl_stride]", "divergences land at the batch's position"),
    (Op::SampleLatentGrad, F32, "sample_latent.cu", "step->beta * scale->scale", "step->beta", "the divergence is not scaled"),
    (Op::SampleLatentGrad, F16, "sample_latent.cu", "d + beta * widen(mu[k])", "d", "the mean has no divergence"),
    (Op::SampleLatentGrad, F16, "sample_latent.cu", "d * eps[i] * deviation", "d * eps[i]", "the gradient misses the deviation"),

    // ---- loss ----
    (Op::Likelihood, F32, "likelihood.cu", "float factor = scale->scale;", "float factor = 1.0f;", "the loss scale is left out"),
    (Op::Likelihood, F32, "likelihood.cu", "i + j < n ? widen(v.at[j]) : most", "widen(v.at[j])", "padding has a say in the maximum"),
    (Op::Likelihood, F32, "likelihood.cu", "i + j < n ? exponential(widen(v.at[j]) - most, T()) : 0.0f", "exponential(widen(v.at[j]) - most, T())", "padding counts in the softmax"),
    (Op::Likelihood, F32, "likelihood.cu", "if (i + j < n) all += l", "all += l", "padding counts in the loss"),
    (Op::Likelihood, F32, "likelihood.cu", "sum * exponential(top - most, T())", "sum", "a tile's sum is not that of the new maximum"),
    (Op::Likelihood, F16, "likelihood.cu", "sum * exponential(top - most, T())", "0.0f", "only the last tile counts in the softmax"),
    (Op::Likelihood, F32, "likelihood.cu", "weight += value_at(x, e)", "weight += 1.0f", "weights of events are ignored in the total"),
    (Op::Likelihood, F32, "likelihood.cu", "event = end;", "", "events of one tile are looked for in the next"),
    (Op::Likelihood, F32, "likelihood.cu", "once ? row.end : lower_bound(x, row, from + n)", "row.end", "events of the next tile are looked for in this one"),
    (Op::Likelihood, F32, "likelihood.cu", "once = cols <= size", "once = true", "a row that does not fit is taken for one that does"),
    (Op::Likelihood, F16, "likelihood.cu", "- factor * value;", "- value;", "events are not scaled"),
    (Op::Likelihood, F32, "likelihood.cu", "factor * seen * (f - value)", "factor * unseen * (f - value)", "confidences are swapped in the gradient"),
    (Op::Likelihood, F32, "likelihood.cu", "(f - value) - 0.5f * unseen * f * f", "(f - value)", "an event counts as unseen, too"),
    (Op::Likelihood, F32, "likelihood.cu", "(f < 0.0f ? small : 1.0f)", "(f < 0.0f ? 1.0f : small)", "the logistic curve is turned"),
    (Op::Likelihood, F32, "likelihood.cu", "log1pf(e)", "e", "the logistic loss is cut short"),
    (Op::Likelihood, F32, "likelihood.cu", "exponential(-fabsf(f), T());\n                    g = factor * (f", "exponential(f, T());\n                    g = factor * (f", "the logistic curve overflows"),
    (Op::Likelihood, F32, "likelihood.cu", "loss[position * loss_stride]", "loss[blockIdx.x * loss_stride]", "losses land at the batch's position"),
    (Op::Likelihood, F32, "likelihood.cu", "all + total * logf(sum)", "all + logf(sum)", "the normaliser is not weighted"),
    (Op::Likelihood, F16, "likelihood.cu", "out, n - i)", "out, SIZE)", "padding is written"),
    (Op::Likelihood, F32, "likelihood.cu", "f = widen(tile[item])", "f = widen(logits[item])", "logits of the history are read when they are gradients"),

    // ---- the update ----
    (Op::Adam, F32, "adam.cu", "rest < len) bad |=", "rest + 1 < len) bad |=", "the last gradient is not looked at"),
    (Op::Adam, F32, "adam.cu", "j < 4; ++j) bad |=", "j < 3; ++j) bad |=", "every fourth gradient is not looked at"),
    (Op::Adam, F32, "adam.cu", "i < vectors; i += stride", "i < smaller(stride, vectors); i += stride", "gradients beyond the first pass are not looked at"),
    (Op::Adam, F32, "adam.cu", "if (bad && lane_of() == 0) atomic_or", "if (bad && threadIdx.x == 0) atomic_or", "only the first warp tells what is not finite"),
    (Op::Adam, F32, "adam.cu", "if (verdict->skip) return;", "", "an update that is bad is made"),
    (Op::Adam, F32, "adam.cu", "atomic_swap(&verdict->done, 0);", ";", "the second update is not judged"),
    (Op::Adam, F32, "adam.cu", "atomic_swap(&verdict->bad, 0)", "verdict->bad", "all updates after a bad one are skipped"),
    (Op::Adam, F32, "adam.cu", "1.0f / scale->scale", "1.0f", "the loss scale stays in"),
    (Op::Adam, F32, "adam.cu", "scale->skipped += skip;", "", "skipped updates are not counted"),
    (Op::Adam, F32, "adam.cu", "scale->good += !skip;", "", "good updates are not counted"),
    (Op::Adam, F32, "adam.cu", "scale->finite = !skip;", "scale->finite = 1;", "every update is told to be good"),
    (Op::Adam, F16, "adam.cu", "scale->scale *= 0.5f;\n        scale->good = 0;", "scale->scale *= 0.5f;", "good updates before a bad one count"),
    (Op::Adam, F16, "adam.cu", "scale->scale *= 0.5f;", "", "the loss scale never falls"),
    (Op::Adam, F16, "adam.cu", "scale->scale *= 2.0f;", "", "the loss scale never grows"),
    (Op::Adam, F32, "adam.cu", "at + j < decayed", "at < decayed", "a bias beside weights decays"),
    (Op::Adam, F32, "adam.cu", "rest < decayed", "true", "the last bias decays"),
    (Op::Adam, F32, "adam.cu", "n < vectors; n += stride", "n < smaller(stride, vectors); n += stride", "weights beyond the first pass stay"),
    (Op::Adam, F32, "adam.cu", "&& rest < len) {\n        update", "&& rest + 1 < len) {\n        update", "the last weight stays"),
    (Op::Adam, F16, "adam.cu", "if (copy) copy[rest] = narrow<T>(w[rest]);", "", "the last half copy is that of before"),
    (Op::Adam, F16, "adam.cu", "*(uint2 *)(copy + at) = narrowed;", "", "half copies are those of before"),
    (Op::Adam, F16, "adam.cu", "each[j] = narrow<T>(weights.at[j])", "each[j] = narrow<T>(weights.at[0])", "half copies are those of every fourth weight"),
    (Op::Adam, F32, "adam.cu", "s.beta2 * v + s.gain2 * g * g", "s.beta2 * v + s.gain2 * g", "the second moment is not of squares"),
    (Op::Adam, F32, "prims.cuh", "(as_bits(x) & 0x7f800000u) != 0x7f800000u", "as_bits(x) != 0x7f800000u", "only infinity is not finite"),

    // ---- rankings ----
    (Op::TopK, F32, "top_k.cu", "if (score != score) return 1;", "if (score != score) return 0xffffffffu;", "what is not a number comes first"),
    (Op::TopK, F16, "top_k.cu", "> infinity) return 1;", "> infinity) return 0xffff;", "what is not a number comes first, in half"),
    (Op::TopK, F32, "top_k.cu", "as_bits(score + 0.0f)", "as_bits(score)", "-0 is below 0"),
    (Op::TopK, F16, "top_k.cu", "if (bits == 0x8000u) bits = 0;", "", "-0 is below 0, in half"),
    (Op::TopK, F16, "top_k.cu", "0x7c00u); }", "0x7bffu); }", "infinity is no number"),
    (Op::TopK, F32, "top_k.cu", "return u64(key) << 32 | u32(~item);", "return u64(key) << 32 | (u32(~item) ^ 1);", "ties of neighbours go to the larger item"),
    (Op::TopK, F32, "top_k.cu", "event < row.end && seen.indices[event]", "false && seen.indices[event]", "the history is not masked where keys are not cached"),
    (Op::TopK, F32, "top_k.cu", "cache[seen.indices[e]] = 0", "cache[seen.indices[e]] += 0", "the history is not masked"),
    (Op::TopK, F32, "top_k.cu", "key >> shift & 255], 1", "key >> (BITS - 8 - shift) & 255], 1", "bytes of the keys are taken the other way round"),
    (Op::TopK, F16, "top_k.cu", "shift == BITS - 8 || key >> (shift + 8) == prefix", "true", "keys with another prefix count"),
    (Op::TopK, F32, "top_k.cu", "wanted <= place.before + mine;", "wanted < place.before + mine;", "the threshold is a byte too low"),
    (Op::TopK, F32, "top_k.cu", "done == 0 || rank_of(key, item) < bound", "true", "the second round takes what the first has taken"),
    (Op::TopK, F32, "top_k.cu", "bound = ranks[want - 1];", "", "all rounds are the first"),
    (Op::TopK, F32, "top_k.cu", "done < k;", "done < 1;", "ranks beyond the first round are not written"),
    (Op::TopK, F32, "top_k.cu", "size <= room;", "size < room;", "the last round of the sort is left out"),
    (Op::TopK, F16, "top_k.cu", "rank == 0 ? -INFINITY_F", "rank == 0 ? 0.0f", "missing items have a score"),
    (Op::TopK, F16, "top_k.cu", "rank == 0 ? 0xffffffffu", "rank == 0 ? 0u", "missing items are item 0"),
    (Op::TopK, F32, "top_k.cu", "before++ < ties", "before < ties", "ties are taken beyond what is wanted"),
    (Op::TopK, F32, "top_k.cu", "i < 256; i += THREADS) state.histogram[i] = 0;", "i < 255; i += THREADS) state.histogram[i] = 0;", "a bin of the histogram is not cleared"),
    (Op::TopK, F32, "top_k.cu", "seen.first + blockIdx.x", "blockIdx.x", "the window is ignored"),

    // ---- sums that travel in half precision ----
    (Op::Group, F16, "sums.cu", "threadIdx.x < head) out[threadIdx.x] = narrow", "threadIdx.x + 1 < head) out[threadIdx.x] = narrow", "the last number before the vectors is not packed"),
    (Op::Group, F16, "sums.cu", "threadIdx.x < head) out[threadIdx.x] = widen", "threadIdx.x + 1 < head) out[threadIdx.x] = widen", "the last number before the vectors is not unpacked"),
    (Op::Group, F16, "sums.cu", "rest < len) out[rest] = narrow", "rest + 1 < len) out[rest] = narrow", "the last number is not packed"),
    (Op::Group, F16, "sums.cu", "rest < len) out[rest] = widen", "rest + 1 < len) out[rest] = widen", "the last number is not unpacked"),
    (Op::Group, F32, "sums.cu", "both.at[4 + j] = narrow<T>(high.at[j]);", "both.at[4 + j] = narrow<T>(low.at[j]);", "half of a vector is packed twice"),
    (Op::Group, F32, "sums.cu", "low.at[j] = widen(both.at[j]);", "low.at[j] = widen(both.at[4 + j]);", "half of a vector is unpacked twice"),
    (Op::Group, F32, "sums.cu", "store_vector(out + 8 * i + 4, high, 4);", "", "half of a vector is not unpacked"),
    (Op::Group, F32, "sums.cu", "i < vectors; i += stride) {\n        Vector<float> low = load", "i < smaller(stride, vectors); i += stride) {\n        Vector<float> low = load", "numbers beyond the first pass are not packed"),
    (Op::Group, F32, "sums.cu", "i < vectors; i += stride) {\n        Vector<T> both = load", "i < smaller(stride, vectors); i += stride) {\n        Vector<T> both = load", "numbers beyond the first pass are not unpacked"),
];
