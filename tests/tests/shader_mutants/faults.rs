//! The faults.

use vaecf_tests::Op;
use vaecf_wgpu::{Lowered, Precision};

use crate::{
    hunts::{Fault, Row},
    wgpu::PIECES,
};

/// How the backend is opened.
#[derive(Clone, Copy)]
pub(crate) struct On {
    pub(crate) precision: Precision,
    pub(crate) lowered: Lowered,
}

const WHOLE: Lowered = Lowered { binding: None, buffer: None, groups: None, piece: None };
const F32: On = On { precision: Precision::F32, lowered: WHOLE };
const F16: On = On { precision: Precision::F16, lowered: WHOLE };
/// Matrices in pieces, which are cut.
const CUT: On = On { precision: Precision::F32, lowered: PIECES };
const CUT16: On = On { precision: Precision::F16, lowered: PIECES };

/// All of them.
pub(crate) fn faults() -> Vec<Fault<On>> {
    FAULTS.iter().map(Fault::of).chain(unordered()).collect()
}

/// Each barrier left out.
fn unordered() -> impl Iterator<Item = Fault<On>> {
    BARRIERS.iter().flat_map(|&(op, place, all)| {
        all.iter().map(move |&which| {
            let name = format!("barrier {} is left out", which + 1);
            Fault { op, on: F32, place, what: "workgroupBarrier();", which: Some(which), instead: "", name }
        })
    })
}

/// Those of each kernel, counted from 0, without which something goes wrong on a driver in software.
const BARRIERS: &[(Op, &str, &[usize])] = &[
    (Op::Likelihood, "likelihood_first", &[0, 1, 2, 3]),
    (Op::Likelihood, "likelihood_rest", &[0, 1]),
    (Op::TopK, "top_k_scores", &[0, 1, 2, 3, 4, 5, 6]),
];

#[rustfmt::skip]
const FAULTS: &[Row<On>] = &[
    // ---- what all share ----
    (Op::Likelihood, CUT, "likelihood_first", "groups.x * (group.y", "8u + (group.y", "grids are folded at another length"),
    (Op::Likelihood, CUT, "likelihood_first", "groups.y * group.z)", "group.z)", "the third side of a grid is taken for the second"),
    (Op::Likelihood, F32, "likelihood_first", "n), vec4<f32>(2.12194440e-4)", "n), vec4<f32>(0.0)", "the small part of log 2 is left out of the exponential"),
    (Op::Likelihood, F32, "likelihood_rest", "-2.12194440e-4, q", "0.0, q", "the small part of log 2 is left out of the logarithm"),
    (Op::Likelihood, F32, "likelihood_rest", "clamp(x, vec4<f32>(-104.0)", "clamp(x, vec4<f32>(-10.0)", "small exponentials are those of -10"),
    (Op::Likelihood, F32, "likelihood_first", "clamp(x, vec4<f32>(-104.0), vec4<f32>(89.0))", "x", "exponentials beyond what there is are anything"),
    (Op::Likelihood, F32, "likelihood_first", "vec4<f32>(1.0 / 3.0)", "vec4<f32>(1.0 / 2.0)", "a coefficient of the logarithm is wrong"),
    (Op::Likelihood, F32, "likelihood_first", "indices[middle] < item", "indices[middle] <= item", "the lower bound is the upper"),
    (Op::Likelihood, F32, "likelihood_first", "user = users[position];", "", "the list of users is ignored"),
    (Op::Likelihood, F32, "likelihood_first", "(x.flags & 4u) != 0u", "(x.flags & 4u) == 0u", "a list of users is read that is absent"),
    (Op::TopK, F32, "top_k_scores", "(x.flags & 1u) == 0u", "(x.flags & 1u) != 0u", "a history is ignored"),
    (Op::Likelihood, F32, "likelihood_first", "return values[event];", "return 1.0;", "weights of events are ignored"),

    // ---- halves ----
    (Op::Likelihood, F16, "likelihood_rest", "+ 0xfffu + ((size >> 13u) & 1u)", "", "halves are cut instead of rounded"),
    (Op::Likelihood, F16, "likelihood_rest", "0xfffu + ((size >> 13u) & 1u)", "0x1000u", "halves between two are rounded up"),
    (Op::Likelihood, F16, "likelihood_rest", "rest = 0x7c00u;", "rest = 0x7bffu;", "what is too large for a half is the largest"),
    (Op::Likelihood, F16, "likelihood_rest", "u32(round(bitcast<f32>(size) * 16777216.0))", "0u", "the smallest halves are zero"),
    (Op::Likelihood, F16, "likelihood_rest", "round(bitcast<f32>(size)", "trunc(bitcast<f32>(size)", "the smallest halves are cut"),
    (Op::Likelihood, F16, "likelihood_rest", "& 0x8000u) |", "& 0u) |", "halves lose their sign"),
    (Op::Likelihood, F16, "likelihood_rest", "(half(x.y) << 16u)", "(half(x.x) << 16u)", "every second half is the one before"),
    (Op::Likelihood, F16, "likelihood_rest", "now.x, count >= 2u", "now.x, count >= 1u", "the half behind a row is written"),
    (Op::Likelihood, F16, "likelihood_rest", "now.y, count >= 4u", "now.y, count >= 3u", "the half behind three is written"),
    (Op::Likelihood, F16, "likelihood_rest", "count == 3u", "false", "the third half of the last four stays"),

    // ---- the loss ----
    (Op::Likelihood, F32, "likelihood_first", "step.first + chunk.row", "chunk.row", "the step's window is ignored"),
    (Op::Likelihood, F32, "likelihood_first", "row * p.stride", "row * ((p.cols + 3u) / 4u)", "rows are taken to lie close together"),
    (Op::Likelihood, F32, "likelihood_first", "min(p.cols - begin, CHUNK)", "CHUNK", "the last chunk of a row is taken to be full"),
    (Op::Likelihood, F32, "likelihood_first", "lower_bound(start, row.end, chunk.first_item + chunk.count)", "row.end", "events of later chunks count in each"),
    (Op::Likelihood, F32, "likelihood_first", "merge(vec4<f32>(LOWEST), wide(logits[chunk.four + i]), chunk.count - 4u * i)", "wide(logits[chunk.four + i])", "padding has a say in the maximum"),
    (Op::Likelihood, F32, "likelihood_first", "select(pair.x, pair.y, pair.y > pair.x)", "pair.x", "half of each four has no say in the maximum"),
    (Op::Likelihood, F32, "likelihood_first", "other < THREADS; other += TEAM) {\n            top", "other < THREADS - TEAM; other += TEAM) {\n            top", "the last threads have no say in the maximum"),
    (Op::Likelihood, F32, "likelihood_first", "team = 1u; team < TEAM", "team = 1u; team < TEAM - 1u", "a team has no say in the maximum"),
    (Op::Likelihood, F32, "likelihood_first", "other < THREADS; other += TEAM) {\n            sum", "other < THREADS - TEAM; other += TEAM) {\n            sum", "the last threads' sums are dropped"),
    (Op::Likelihood, F32, "likelihood_first", "team = 0u; team < TEAM", "team = 1u; team < TEAM", "a team's sums are dropped"),
    (Op::Likelihood, F32, "likelihood_first", "exponential4(f - top)", "exponential4(f)", "the maximum is not subtracted"),
    (Op::Likelihood, F32, "likelihood_first", "4u * i < chunk.count; i += THREADS) {\n        let f", "4u * i + 4u < chunk.count; i += THREADS) {\n        let f", "the last four are not summed"),
    (Op::Likelihood, F32, "likelihood_first", "4u * i < chunk.count; i += THREADS) {\n        let f", "4u * i < min(chunk.count, 4u * THREADS); i += THREADS) {\n        let f", "what threads take the second time is not summed"),
    (Op::Likelihood, F32, "likelihood_first", "merge(vec4<f32>(0.0), term, chunk.count - 4u * i)", "term", "padding counts in the sum"),
    (Op::Likelihood, F32, "likelihood_first", "term = 0.5 * p.unseen * f * f;", "term = 0.5 * f * f;", "what is not seen counts in full"),
    (Op::Likelihood, F32, "likelihood_first", " - 0.5 * p.unseen * f * f;", ";", "an event counts as unseen, too"),
    (Op::Likelihood, F32, "likelihood_first", "select(f, vec4<f32>(0.0), f < vec4<f32>(0.0))", "f", "the logistic loss is negative for what is"),
    (Op::Likelihood, F32, "likelihood_first", "exponential4(-abs(f))", "exponential4(f)", "the logistic loss overflows"),
    (Op::Likelihood, F32, "likelihood_first", "total += x;", "total += 1.0;", "weights of events are ignored in the total"),
    (Op::Likelihood, F32, "likelihood_first", "loss += x * (top - f);", "loss += top - f;", "weights of events are ignored in the loss"),
    (Op::Likelihood, F32, "likelihood_first", "loss -= x * f;", "loss -= f;", "weights of events are ignored in the logistic loss"),
    (Op::Likelihood, CUT, "likelihood_first", "p.chunks_before + number", "number", "what cells of a row tell lands over each other"),
    (Op::Likelihood, F32, "likelihood_first", "chunk.row * p.row_chunks", "chunk.row", "what chunks of a row tell lands over each other"),
    (Op::Likelihood, F32, "likelihood_rest", "i < CHUNK; i += THREADS) {\n        history", "i < THREADS; i += THREADS) {\n        history", "the history is not cleared beyond the threads"),
    (Op::Likelihood, F32, "likelihood_rest", "parts[row + thread]", "parts[row]", "every chunk tells what the first does"),
    (Op::Likelihood, CUT, "likelihood_rest", "other = thread + THREADS; other < p.row_chunks", "other = p.row_chunks; other < p.row_chunks", "chunks beyond the threads are dropped"),
    (Op::Likelihood, F32, "likelihood_rest", "part.sum * exponential(part.top - top)", "part.sum", "a chunk's sum is not that of the row's maximum"),
    (Op::Likelihood, F32, "likelihood_rest", "part.loss + part.total * (top - part.top)", "part.loss", "a chunk's loss is not that of the row's maximum"),
    (Op::Likelihood, F32, "likelihood_rest", "x = values[event];", "", "weights of events are ignored in the gradient"),
    (Op::Likelihood, F32, "likelihood_rest", "other < joined; other++) {\n        top", "other < 1u; other++) {\n        top", "only the first chunk has a say in the maximum"),
    (Op::Likelihood, F32, "likelihood_rest", "other < joined; other++) {\n        all", "other < 1u; other++) {\n        all", "only the first chunk counts in the sums"),
    (Op::Likelihood, F32, "likelihood_rest", "other < joined; other++) {\n        all", "other + 1u < joined; other++) {\n        all", "the last chunk does not count in the sums"),
    (Op::Likelihood, F32, "likelihood_rest", "all.y * logarithm(all.x)", "logarithm(all.x)", "the normaliser is not weighted"),
    (Op::Likelihood, F32, "likelihood_rest", "found.position * p.loss_stride", "chunk.row * p.loss_stride", "losses land at the batch's position"),
    (Op::Likelihood, F32, "likelihood_rest", "losses[p.loss + ", "losses[", "losses land at the start of their buffer"),
    (Op::Likelihood, F32, "likelihood_rest", "factor = scale.scale;", "factor = 1.0;", "the loss scale is ignored"),
    (Op::Likelihood, F32, "likelihood_rest", "- factor * x;", "- x;", "events are not scaled"),
    (Op::Likelihood, F32, "likelihood_rest", "factor * p.seen * (f - x)", "factor * p.unseen * (f - x)", "confidences are swapped in the gradient"),
    (Op::Likelihood, F32, "likelihood_rest", "select(vec4<f32>(1.0), e, f < vec4<f32>(0.0))", "select(vec4<f32>(1.0), e, f > vec4<f32>(0.0))", "the logistic curve is turned"),
    (Op::Likelihood, F32, "likelihood_rest", "let share = factor * all.y / all.x;", "let share = factor / all.x;", "the softmax is not weighted"),
    (Op::Likelihood, F32, "likelihood_rest", "merge_four(old, narrow(g), chunk.count - 4u * i)", "narrow(g)", "padding is written"),
    (Op::Likelihood, F32, "likelihood_rest", "4u * i < chunk.count; i += THREADS", "4u * i + 4u <= chunk.count; i += THREADS", "what does not fill a four stays"),

    // ---- the update ----
    (Op::Adam, F32, "adam", "4u * at >= p.len || bad != 0u", "4u * at + 4u >= p.len || bad != 0u", "the last four stay"),
    (Op::Adam, F32, "adam", "|| bad != 0u", "", "an update that is bad is made"),
    (Op::Adam, F32, "adam", "step.grad_factor / scale.scale", "step.grad_factor", "the loss scale stays in"),
    (Op::Adam, F32, "adam", "vec4<u32>(4u * at) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.decayed)", "vec4<u32>(4u * at) < vec4<u32>(p.decayed)", "a bias beside weights decays"),
    (Op::Adam, F32, "adam", "vec4<f32>(0.0), step.l2 * weights, decays", "step.l2 * weights, vec4<f32>(0.0), decays", "biases decay instead of weights"),
    (Op::Adam, F32, "adam", "step.gain2 * g * g", "step.gain2 * g", "the second moment is not of squares"),
    (Op::Adam, F32, "adam", "m[at], step.gain1 * g", "m[at], g", "the first moment takes gradients in full"),
    (Op::Adam, F32, "adam", "fma(sqrt(second), vec4<f32>(step.root), vec4<f32>(step.eps))", "fma(sqrt(second), vec4<f32>(1.0), vec4<f32>(step.eps))", "the second moment's correction is left out"),
    (Op::Adam, F32, "adam", "merge(weights, updated, count)", "updated", "what lies behind the arena is updated"),
    (Op::Adam, F32, "adam", "merge(v[at], second, count)", "second", "moments behind the arena are written"),
    (Op::Adam, F16, "adam", "narrow(updated)", "narrow(weights)", "half copies are those of before"),
    (Op::Adam, F16, "adam", "merge_four(copy[at], narrow(updated), count)", "narrow(updated)", "half copies behind the arena are written"),
    (Op::Adam, F16, "adam", "p.copied != 0u", "p.copied != 0u && count >= 4u", "the last half copies are those of before"),
    (Op::Adam, F32, "adam_check", "4u * at >= p.len", "4u * at + 4u >= p.len", "the last four gradients are not looked at"),
    (Op::Adam, F32, "adam_check", "merge(vec4<f32>(0.0), dw[at], p.len - 4u * at)", "dw[at]", "what lies behind the gradients is looked at"),
    (Op::Adam, F32, "adam_check", "return all((", "return any((", "a gradient that is not finite hides behind its neighbours"),
    (Op::Adam, F32, "adam_check", "(0x7fffffffu)) < vec4<u32>(0x7f800000u)", "(0x7fffffffu)) <= vec4<u32>(0x7f800000u)", "infinity is finite"),
    (Op::Adam, F32, "adam_check", "(0x7fffffffu)) < vec4<u32>(0x7f800000u)", "(0x7fffffffu)) != vec4<u32>(0x7f800000u)", "only infinity is not finite"),
    (Op::Adam, F32, "adam_check", "x) & vec4<u32>(0x7fffffffu)", "x)", "negative numbers are not finite"),
    (Op::Adam, F32, "adam_settle", "bad = 0u;", "", "all updates after a bad one are skipped"),
    (Op::Adam, F32, "adam_settle", "select(1u, 0u, skip)", "1u", "every update is told to be good"),
    (Op::Adam, F32, "adam_settle", "scale.skipped += 1u;", "", "skipped updates are not counted"),
    (Op::Adam, F32, "adam_settle", "scale.good += 1u;", "", "good updates are not counted"),
    (Op::Adam, F32, "adam_settle", "if (p.growth == 0u) {", "if (false) {", "the loss scale moves in single precision"),
    (Op::Adam, F16, "adam_settle", "scale.scale *= 0.5;", "", "the loss scale never falls"),
    (Op::Adam, F16, "adam_settle", "scale.scale *= 0.5;\n        scale.good = 0u;", "scale.scale *= 0.5;", "good updates before a bad one count"),
    (Op::Adam, F16, "adam_settle", "scale.scale *= 2.0;", "", "the loss scale never grows"),
    (Op::Adam, F16, "adam_settle", "scale.scale *= 2.0;\n        scale.good = 0u;", "scale.scale *= 2.0;", "once grown, the loss scale grows with each update"),
    (Op::Adam, F16, "adam_settle", "scale.good >= p.growth", "scale.good > p.growth", "the loss scale grows one update late"),

    // ---- rankings ----
    (Op::TopK, F32, "top_k_scores", "select(scores, vec4<u32>(0u), scores == vec4<u32>(0x80000000u))", "scores", "-0 is below 0"),
    (Op::TopK, F32, "top_k_scores", "select(keys, vec4<u32>(NAN_KEY), (bits", "select(keys, vec4<u32>(0xffffffffu), (bits", "what is not a number comes first"),
    (Op::TopK, F32, "top_k_scores", "select(keys, vec4<u32>(NAN_KEY), (bits", "select(keys, vec4<u32>(0u), (bits", "what is not a number is not ranked"),
    (Op::TopK, F32, "top_k_scores", "> vec4<u32>(INFINITY_BITS)", ">= vec4<u32>(INFINITY_BITS)", "infinity is no number"),
    (Op::TopK, F32, "top_k_scores", "~bits, bits >= vec4<u32>(0x80000000u)", "bits, bits >= vec4<u32>(0x80000000u)", "negative scores are ranked the other way round"),
    (Op::TopK, F32, "top_k_scores", "select(~key, key & 0x7fffffffu", "select(key, key & 0x7fffffffu", "negative scores are told wrong"),
    (Op::TopK, F32, "top_k_scores", "a.y > b.y", "a.y < b.y", "ties go to the larger item"),
    (Op::TopK, F32, "top_k_scores", "place_of(ranks[thread], THREADS) == k - 1u", "place_of(ranks[thread], THREADS) == k / 2u", "the guess is too high"),
    (Op::TopK, F32, "top_k_scores", "max(max(keys.x, keys.y), max(keys.z, keys.w))", "keys.x", "the guess is that of every fourth score"),
    (Op::TopK, F32, "top_k_scores", "rank.x != 0u && is_above(beyond, rank)", "is_above(beyond, rank)", "items that may not be ranked are"),
    (Op::TopK, F32, "top_k_scores", "rank.x != 0u && is_above(beyond, rank)", "rank.x != 0u", "the second round takes what the first has taken"),
    (Op::TopK, F32, "top_k_scores", "all((rank & mask) == prefix)", "(rank & mask).x == prefix.x", "ties are counted by their scores alone"),
    (Op::TopK, F32, "top_k_scores", ">> (24u - 8u * (byte % 4u))) & 255u", ">> (8u * (byte % 4u))) & 255u", "bytes of the ranks are taken the other way round"),
    (Op::TopK, F32, "top_k_scores", "wanted <= before + mine", "wanted < before + mine", "the bound is a byte too low"),
    (Op::TopK, F32, "top_k_scores", "wanted -= found.y;", "", "what is above the bound is wanted twice"),
    (Op::TopK, F32, "top_k_scores", "other = thread + 1u; other < THREADS", "other = thread + 1u; other < THREADS - 1u", "the largest bytes are not counted"),
    (Op::TopK, F32, "top_k_scores", "any(keys >= vec4<u32>(bound.x))", "any(keys > vec4<u32>(bound.x))", "scores that equal the bound are dropped"),
    (Op::TopK, F32, "top_k_scores", "!is_above(bound, rank)", "is_above(rank, bound)", "the last of a ranking is dropped"),
    (Op::TopK, F32, "top_k_scores", "done < p.k; done += ROUND", "done < min(p.k, 1u); done += ROUND", "ranks beyond the first round are not written"),
    (Op::TopK, F32, "top_k_scores", "want <= GUESSED && done == 0u", "want <= GUESSED", "the last round is that of the best"),
    (Op::TopK, F32, "top_k_scores", "beyond = workgroupUniformLoad(&told).xy;", "beyond = max(beyond, workgroupUniformLoad(&told).xy);", "all rounds are the first"),
    (Op::TopK, F32, "top_k_scores", "if (thread == 0u && count < want) {", "if (false) {", "after the last item, items are ranked again"),
    (Op::TopK, F32, "top_k_scores", "i = count + thread; i < want", "i = want; i < want", "what is missing in a ranking stays as it was"),
    (Op::TopK, F32, "top_k_scores", "best_items[out + done + i] = NO_ITEM;", "best_items[out + done + i] = 0u;", "missing items are item 0"),
    (Op::TopK, F32, "top_k_scores", "0x80000000u | INFINITY_BITS", "0u", "missing items have a score"),
    (Op::TopK, F32, "top_k_scores", "(number % p.chunks) * p.k", "0u", "rankings of chunks land over each other"),
    (Op::TopK, F32, "top_k_scores", "1u << (item % 32u)", "1u << ((item + 1u) % 32u)", "the item beside a seen one is left out"),
    (Op::TopK, F32, "top_k_scores", "select(0xffffffffu << (left % 32u), 0u, left >= 32u)", "0u", "what lies behind the last item is ranked"),
    (Op::TopK, F32, "top_k_scores", "p.first + number / p.chunks)", "number / p.chunks)", "the window of the histories is ignored"),
    (Op::TopK, F32, "top_k_scores", "(number / p.chunks) * p.stride", "(number / p.chunks) * ((p.cols + 3u) / 4u)", "rows are taken to lie close together"),
    (Op::TopK, F32, "top_k_scores", "4u * (i % 8u)", "4u * (i % 4u)", "half of the history is that of the other half"),
    (Op::TopK, CUT, "top_k_scores", "vec4<u32>(source.first_item + 4u * i)", "vec4<u32>(4u * i)", "items of a cell are counted from its start"),
    (Op::TopK, CUT, "top_k_scores", "indices[event] - p.first_item - begin", "indices[event] - begin", "the history of a cell is that of the first"),
    (Op::TopK, CUT, "top_k_rankings", "(p.each + 3u) / 4u", "p.each / 4u", "the last of what is joined is dropped"),
    (Op::TopK, CUT, "top_k_rankings", "select(vec4<u32>(NO_ITEM), found, there)", "found", "what is behind the candidates is ranked"),
    (Op::TopK, CUT, "top_k_rankings", "items_at(source, i) == vec4<u32>(NO_ITEM)", "vec4<bool>(false)", "missing candidates are ranked"),
    (Op::TopK, CUT, "top_k_rankings", "number * p.each", "0u", "every row is joined of the first row's candidates"),
    (Op::TopK, CUT, "top_k_rankings", "a.y > b.y", "a.y < b.y", "ties of parts go to the larger item"),
];
