//! What a case is put to: agreement with the reference, gradients, identities, noise, faults.

use std::{sync::atomic::AtomicU32, time::Instant};

use vaecf_core::{
    backend::{
        Backend, Buf, Curve, Fault, Host, HostMut, Info, MARKS, Mark, Mat, Noise, Role, Rows, ScaleState, Seat,
        StepParams,
    },
    forward_backend,
    random::{self, stream},
};
use vaecf_cpu::Cpu;

use crate::{
    case::{Case, Data, Fill},
    compare::{Float, Tolerance, compare, first_difference, matrix, scalar},
    lab::{Lab, Mode, Taken, Tried, Wrong, ensure},
    numbers::{Numbers, round},
    op::Op,
    operations::{self, Bound, perform},
    suite::Check,
};

/// The reference: double precision on one thread.
pub(crate) fn truth() -> Tried<Cpu<f64>> {
    Ok(Cpu::new(Some(1))?)
}

/// A backend reduced to what it must have, so that everything else is the definition.
pub struct Plain<B>(pub B);

impl<B: Backend> Backend for Plain<B> {
    fn info(&self) -> Info {
        Info { capture: false, ..self.0.info() }
    }
    forward_backend! { self, self.0;
        alloc free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
    }
}

/// One case against the reference, with all that must hold beside: nothing else is touched; the same
/// bits twice where promised; a replay is the call; an override is its definition. The worst error, as
/// a fraction of what is allowed.
pub(crate) fn agrees(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let info = subject.info();
    let numbers = Numbers::of(&info).map_err(Wrong::Broken)?;
    let (actual, _) = perform(subject, case, numbers, Mode::Eager, false)?;
    let (expected, bounds) = perform(&mut truth()?, case, numbers, Mode::Eager, true)?;
    let judge = |actual: &[Taken], whose: &str| -> Tried<f64> {
        let judged = match case.op {
            Op::Recommend if case.data != Data::Integers => ranking(case, numbers, actual, &bounds[0]),
            _ => judged(numbers, actual, &expected, &bounds),
        };
        judged.map_err(|wrong| match wrong {
            Wrong::Broken(what) => Wrong::Broken(format!("{whose}{what}")),
            wrong => wrong,
        })
    };
    let mut worst = judge(&actual, "")?;
    if info.deterministic {
        let (again, _) = perform(subject, case, numbers, Mode::Eager, false)?;
        same(&actual, &again, "a second run, though it promises the same bits")?;
    }
    if info.capture {
        let (replayed, _) = perform(subject, case, numbers, Mode::Replayed, false)?;
        if info.deterministic {
            same(&actual, &replayed, "a replay with another step buffer")?;
        }
        worst = worst.max(judge(&replayed, "replayed: ")?);
    }
    if matches!(case.op, Op::DecodeLossGrad | Op::Recommend) {
        let (composed, _) = perform(&mut Plain(&mut *subject), case, numbers, Mode::Eager, false)?;
        judge(&composed, "made of the plain operations: ")?;
        // The override beside its definition: near ties may be ranked either way, everything else is held.
        if case.op == Op::DecodeLossGrad || case.data == Data::Integers {
            judged(numbers, &actual, &composed, &bounds).map_err(|wrong| match wrong {
                Wrong::Broken(what) => Wrong::Broken(format!("beside its own plain operations: {what}")),
                wrong => wrong,
            })?;
        }
    }
    Ok(worst)
}

fn same(first: &[Taken], second: &[Taken], when: &str) -> Tried {
    for (a, b) in first.iter().zip(second) {
        let at = first_difference(&a.values, &b.values);
        ensure(at.is_none(), || format!("{} has other bits in {when}, from element {} on", a.name, at.unwrap_or(0)))?;
    }
    ensure(first.len() == second.len(), || format!("another number of results in {when}"))
}

fn judged(numbers: Numbers, actual: &[Taken], expected: &[Taken], bounds: &[Bound]) -> Tried<f64> {
    let all = actual.len() == expected.len() && expected.len() == bounds.len();
    ensure(all, || format!("{} results where {} are expected", actual.len(), bounds.len()))?;
    let mut worst = 0.0_f64;
    for ((actual, expected), bound) in actual.iter().zip(expected).zip(bounds) {
        let stored: Vec<f64> = expected.values.iter().map(|&x| bound.stored(numbers, x)).collect();
        let found = compare(
            matrix(actual.rows, actual.cols, &actual.values),
            matrix(expected.rows, expected.cols, &stored),
            &bound.clone().tolerance(numbers),
        );
        let found = found.map_err(|e| Wrong::Broken(format!("{}: {e}", actual.name)))?;
        worst = worst.max(found.fraction());
    }
    Ok(worst)
}

/// A ranking whose scores were computed by the backend itself: the values are those of the items, they
/// fall, no item is seen or named twice, and none is left out that is better by more than rounding.
fn ranking(case: &Case, numbers: Numbers, actual: &[Taken], bound: &Bound) -> Tried<f64> {
    let (i, k) = (case.items as usize, case.k as usize);
    let mut reference = truth()?;
    let scores = operations::scores(&Lab::new(&mut reference, case, numbers, Mode::Eager)?);
    let off = bound.magnitude();
    let (history, order) = (case.history(), case.order());
    let unmasked = case.fill == Fill::Empty;
    let [items, values, ..] = actual else { return Err(Wrong::Broken("no ranking".into())) };
    let (mut of_items, mut wanted, mut magnitude) = (Vec::new(), Vec::new(), Vec::new());
    for (row, (items, values)) in items.values.chunks_exact(k).zip(values.values.chunks_exact(k)).enumerate() {
        let user = order[case.first as usize + row];
        let mut open = vec![true; i];
        if !unmasked {
            history.row(user).iter().for_each(|&item| open[item as usize] = false);
        }
        let left = open.iter().filter(|open| **open).count().min(k);
        for (at, (&item, &value)) in items.iter().zip(values).enumerate() {
            if at >= left {
                let filled = item == f64::from(u32::MAX) && value == f64::NEG_INFINITY;
                ensure(filled, || format!("row {row} has {item} with {value} where no item is left"))?;
                continue;
            }
            let free = (item as usize) < i && std::mem::replace(&mut open[item as usize], false);
            ensure(free, || format!("row {row} ranks item {item}, which is seen, named already, or no item"))?;
            ensure(at == 0 || value <= values[at - 1], || format!("row {row} does not fall at {at}"))?;
            of_items.push(value);
            wanted.push(bound.stored(numbers, scores[row * i + item as usize]));
            magnitude.push(off[row * i + item as usize]);
        }
        // The best that was left out is no better than the last that was named, but for rounding of both.
        let last = left.checked_sub(1).map(|at| items[at] as usize);
        if let Some(last) = last.filter(|_| left == k) {
            for item in (0..i).filter(|&item| open[item]) {
                let (inside, outside) = (scores[row * i + last], scores[row * i + item]);
                if outside > inside {
                    of_items.push(outside);
                    wanted.push(inside);
                    magnitude.push(off[row * i + last] + off[row * i + item]);
                }
            }
        }
    }
    let tolerance = bound.clone().with(magnitude).tolerance(numbers);
    Ok(compare(&of_items, &wanted, &tolerance).map_err(|e| Wrong::Broken(format!("scores: {e}")))?.fraction())
}

/// The gradients that a backend computes against central differences of the loss as [`crate::gradients`] writes it.
pub(crate) fn gradient(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let numbers = Numbers::of(&subject.info()).map_err(Wrong::Broken)?;
    let mut worst = 0.0_f64;
    for (name, gradient, differences) in crate::gradients::of(subject, case, numbers)? {
        // Differences are good to about the digits of f32, of the largest value in sight.
        let float = if numbers.act == Float::F64 { Float::F32 } else { numbers.act };
        let biggest = differences.iter().fold(1.0_f64, |a, x| a.max(x.abs()));
        let tolerance = Tolerance::new(float, Float::F32).magnitude(vec![biggest; differences.len()]).factor(8.0);
        let rounded = numbers.operands.or((numbers.act != numbers.sum).then_some(numbers.act));
        let tolerance = rounded.map_or(tolerance.clone(), |rounded| tolerance.operands(rounded));
        let found = compare(&gradient, &differences, &tolerance).map_err(|e| Wrong::Broken(format!("{name}: {e}")))?;
        worst = worst.max(found.fraction());
    }
    Ok(worst)
}

/// Identities that need no reference, of cases that are fit for them (`fit` in [`crate::suite`]).
pub(crate) fn identity(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let numbers = Numbers::of(&subject.info()).map_err(Wrong::Broken)?;
    let (b, i) = (case.users as usize, case.items as usize);
    match case.op {
        Op::Likelihood => {
            // Multinomial: a row of the gradient sums to zero, because the softmax sums to one.
            let (taken, bounds) = perform(subject, case, numbers, Mode::Eager, true)?;
            let sum = |row: &[f64]| row.iter().sum::<f64>();
            let sums: Vec<f64> = taken[0].values.chunks_exact(i).map(sum).collect();
            // Each of them was rounded when it was stored, and next to zero by a fixed amount.
            let least = i as f64 * numbers.act.tiny() / numbers.act.roundoff();
            let sizes: Vec<f64> = bounds[0].magnitude().chunks_exact(i).map(|row| sum(row) + least).collect();
            let tolerance = Tolerance::new(numbers.sum, numbers.sum).terms(i).factor(4.0).operands(numbers.act);
            let found = compare(&sums, &vec![0.0; b], &tolerance.magnitude(sizes));
            let worst = found.map_err(|e| Wrong::Broken(format!("the sum of a gradient's row: {e}")))?.fraction();
            Ok(worst.max(not_negative(&taken[1], &bounds[1], numbers)?))
        }
        Op::SampleLatent => {
            // Without noise z is the mean, and no divergence is negative.
            let (taken, bounds) = perform(subject, case, numbers, Mode::Eager, true)?;
            let k = case.outer as usize;
            let mut reference = truth()?;
            let stats = Lab::new(&mut reference, case, numbers, Mode::Eager)?.draw(Role::Act, 0, b * 2 * k);
            let mean: Vec<f64> = stats.chunks_exact(2 * k).flat_map(|row| row[..k].to_vec()).collect();
            compare(&taken[0].values, &mean, &Tolerance::EXACT)
                .map_err(|e| Wrong::Broken(format!("z and the mean: {e}")))?;
            not_negative(&taken[1], &bounds[1], numbers)
        }
        Op::EncodeSparse => {
            // A row without events is the curve of the bias: all rows are the same.
            let (taken, _) = perform(subject, case, numbers, Mode::Eager, false)?;
            let mut rows = taken[0].values.chunks_exact(case.outer as usize);
            let Some(first) = rows.next() else { return Ok(0.0) };
            ensure(rows.all(|row| first_difference(row, first).is_none()), || "empty rows differ".into())?;
            Ok(0.0)
        }
        Op::TopK => {
            // A ranking is the head of a sort.
            let (taken, _) = perform(subject, case, numbers, Mode::Eager, false)?;
            let mut reference = truth()?;
            let scores = operations::ranked_scores(&Lab::new(&mut reference, case, numbers, Mode::Eager)?);
            let (history, order) = (case.history(), case.order());
            let rows = scores.chunks_exact(i).zip(taken[0].values.chunks_exact(case.k as usize));
            for (row, (scores, ranked)) in rows.enumerate() {
                let seen = history.row(order[case.first as usize + row]);
                let mut sorted: Vec<u32> = (0..case.items).filter(|item| seen.binary_search(item).is_err()).collect();
                // Stable: equal scores stay in the order of their items.
                sorted.sort_by(|&a, &b| {
                    let (a, b) = (scores[a as usize], scores[b as usize]);
                    a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(std::cmp::Ordering::Equal))
                });
                sorted.resize(case.k as usize, u32::MAX);
                let sorted: Vec<f64> = sorted.into_iter().map(f64::from).collect();
                ensure(ranked == sorted, || format!("row {row} is {ranked:?}, and sorted {sorted:?}"))?;
            }
            Ok(0.0)
        }
        Op::Adam => {
            // Without a gradient, a moment or decay nothing moves.
            let mut lab = Lab::new(subject, case, numbers, Mode::Eager)?;
            let n = case.items as usize;
            let (w, zeros) = (lab.draw(Role::Weight, 0, n), vec![0.0; n]);
            let wb = lab.arena("w", Role::Weight, Some(&w), n, true)?;
            let dw = lab.arena("dw", Role::Grad, Some(&zeros), n, false)?;
            let m = lab.arena("m", Role::Moment, Some(&zeros), n, true)?;
            let v = lab.arena("v", Role::Moment, Some(&zeros), n, true)?;
            lab.call(|q, step, scale| q.adam(wb, dw, m, v, n as u64, 0, step, scale))?;
            let taken = lab.take()?;
            for (taken, before) in taken.iter().zip([&w, &zeros, &zeros]) {
                let at = first_difference(&taken.values, before);
                ensure(at.is_none(), || format!("{} moved without a reason at {}", taken.name, at.unwrap_or(0)))?;
            }
            Ok(0.0)
        }
        _ => Ok(0.0),
    }
}

/// Losses and divergences are at least zero, but for rounding.
fn not_negative(taken: &Taken, bound: &Bound, numbers: Numbers) -> Tried<f64> {
    // What is not a number stays what it is.
    let below: Vec<f64> = taken.values.iter().map(|&x| if x >= 0.0 { 0.0 } else { x }).collect();
    let found = compare(&below, &vec![0.0; below.len()], &bound.clone().tolerance(numbers));
    Ok(found.map_err(|e| Wrong::Broken(format!("{} is negative: {e}", taken.name)))?.fraction())
}

/// Noise, element by element, against the definition in [`vaecf_core::random`].
pub(crate) fn noise(subject: &mut dyn Backend, case: &Case) -> Tried<f64> {
    let numbers = Numbers::of(&subject.info()).map_err(Wrong::Broken)?;
    let order = case.order();
    let batch = &order[case.first as usize..][..case.users as usize];
    let mut lab = Lab::new(subject, case, numbers, Mode::Eager)?;
    let (b, i, k) = (case.users as usize, case.items as usize, case.outer as usize);
    let update = lab.params.update;
    if case.op == Op::SampleLatent {
        // Mean 0 and log-variance 0: the sample is the draw.
        let x = lab.rows(&Case { fill: Fill::One, items: 1, ..case.clone() }.history(), &order, true)?;
        let stats = lab.input("stats", Role::Act, b, 2 * k, &vec![0.0; b * 2 * k])?;
        let (z, kl) = (lab.output("z", Role::Act, b, k)?, lab.per_user("kl")?);
        lab.call(|q, step, _| q.sample_latent(x, stats, operations::latent(case), step, z, kl))?;
        let blocks = |&user: &u32| {
            let all = (0..k.div_ceil(4) as u32)
                .flat_map(move |at| random::normals::<f64>(case.seed, stream::LATENT, update, user, at));
            all.take(k).collect::<Vec<f64>>()
        };
        let expected: Vec<f64> = batch.iter().flat_map(blocks).collect();
        let size = vec![6.0; expected.len()];
        let tolerance = Tolerance::new(numbers.act, numbers.sum).terms(4).magnitude(size).factor(4.0);
        let taken = lab.take()?;
        return Ok(compare(&taken[0].values, &expected, &tolerance)?.fraction());
    }
    // Weights of one on the diagonal: the output is the input, and zero exactly where it was dropped.
    let history = case.history();
    let threshold = random::threshold(case.keep as f32);
    let kept = |user, item| random::keeps(case.seed, stream::DROPOUT, update, user, item, threshold);
    let shown = |user: u32, item: u32| history.row(user).binary_search(&item).is_ok() && kept(user, item);
    let x = lab.rows(&history, &order, true)?;
    let (found, expected): (Vec<bool>, Vec<bool>) = if case.op == Op::EncodeSparse {
        let diagonal: Vec<f64> = (0..i * i).map(|at| f64::from(u8::from(at / i == at % i))).collect();
        let w = lab.input("w", Role::Weight, i, i, &diagonal)?;
        let bias = lab.input("b", Role::Weight, 1, i, &vec![0.0; i])?;
        let y = lab.output("y", Role::Act, b, i)?;
        lab.call(|q, step, _| q.encode_sparse(x, w, bias, Curve::Identity, operations::dropout(case), step, y))?;
        let expected = batch.iter().flat_map(|&user| (0..case.items).map(move |item| (user, item)));
        (lab.take()?[0].values.iter().map(|&y| y != 0.0).collect(), expected.map(|(u, i)| shown(u, i)).collect())
    } else {
        // One column a user: its gradient is the user's input.
        let diagonal: Vec<f64> = (0..b * b).map(|at| f64::from(u8::from(at / b == at % b))).collect();
        let dy = lab.input("dy", Role::Act, b, b, &diagonal)?;
        let (dw, db) = (lab.output("dw", Role::Grad, i, b)?, lab.output("db", Role::Grad, 1, b)?);
        lab.call(|q, step, _| q.encode_sparse_grad(x, dy, operations::dropout(case), step, dw, db))?;
        let expected = (0..case.items).flat_map(|item| batch.iter().map(move |&user| (user, item)));
        (lab.take()?[0].values.iter().map(|&y| y != 0.0).collect(), expected.map(|(u, i)| shown(u, i)).collect())
    };
    let wrong = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    ensure(wrong == 0, || format!("{wrong} of {} draws are not those of the definition", expected.len()))?;
    Ok(0.0)
}

/// What may go wrong with buffers: an error, never a crash, and the backend works on.
pub(crate) fn memory(subject: &mut dyn Backend, check: Check) -> Tried<f64> {
    let info = subject.info();
    let numbers = Numbers::of(&info).map_err(Wrong::Broken)?;
    match check {
        Check::OutOfMemory => {
            let beyond = info.memory.unwrap_or(1 << 50).saturating_mul(4).max(1 << 50);
            let sizes =
                [(Role::Act, u64::MAX / 2), (Role::Act, beyond), (Role::Weight, u64::MAX), (Role::Index, 1 << 60)];
            for (role, len) in sizes {
                let given = subject.alloc(role, len);
                let what = match given {
                    Err(Fault::OutOfMemory { .. }) => continue,
                    Err(fault) => format!("not out of memory, but {fault}"),
                    Ok(buf) => {
                        subject.free(buf);
                        "given, which no machine has".into()
                    }
                };
                return Err(Wrong::Broken(format!("{len} elements of {role:?}: {what}")));
            }
        }
        Check::Handles => handles(subject)?,
        Check::Reuse => return reuse(subject, numbers),
        _ => {}
    }
    holds(subject, numbers)
}

/// Roles whose elements are floats.
const FLOATS: [Role; 5] = [Role::Weight, Role::Grad, Role::Moment, Role::Act, Role::Value];

/// Buffers begin as zeros and hold what is uploaded, rounded to nearest.
fn holds(subject: &mut dyn Backend, numbers: Numbers) -> Tried<f64> {
    for role in FLOATS {
        // Longer than any block in which a device clears or copies.
        for len in [100_usize, 300_007] {
            let buf = subject.alloc(role, len as u64)?;
            let mut all = vec![7.0_f64; len];
            subject.download(buf, 0, HostMut::F64(&mut all))?;
            let zeros = vec![0.0; len];
            ensure(first_difference(&all, &zeros).is_none(), || format!("a new buffer of {role:?} is not zero"))?;
            // Exact in every type; at an offset, and in single precision.
            let values: Vec<f64> = (0..len - 40).map(|x| (x % 61) as f64 - 30.0).collect();
            let single: Vec<f32> = values[..20].iter().map(|&x| x as f32).collect();
            subject.upload(buf, 33, Host::F64(&values))?;
            subject.upload(buf, 5, Host::F32(&single))?;
            let expected: Vec<f64> = [&[0.0; 5], &values[..20], &[0.0; 8], &values[..], &[0.0; 7]].concat();
            subject.download(buf, 0, HostMut::F64(&mut all))?;
            let at = first_difference(&all, &expected);
            ensure(at.is_none(), || format!("{role:?} does not hold what was uploaded at {}", at.unwrap_or(0)))?;
            let mut part = vec![0.0_f32; 30];
            subject.download(buf, 40, HostMut::F32(&mut part))?;
            let part: Vec<f64> = part.into_iter().map(f64::from).collect();
            let same = first_difference(&part, &expected[40..70]).is_none();
            ensure(same, || format!("{role:?} is downloaded from another place"))?;
            // A number that must be rounded is rounded to nearest. Of weights the master is seen.
            if role != Role::Weight {
                subject.upload(buf, 0, Host::F64(&[1.0 / 3.0]))?;
                subject.download(buf, 0, HostMut::F64(&mut all[..1]))?;
                let wanted = round(numbers.role(role), 1.0 / 3.0);
                compare(scalar(all[0]), scalar(wanted), &Tolerance::EXACT)
                    .map_err(|e| Wrong::Broken(format!("{role:?} of one third: {e}")))?;
            }
            subject.free(buf);
        }
    }
    let buf = subject.alloc(Role::Index, 50)?;
    let (values, mut all): (Vec<u32>, _) = ((0..30).map(|x| u32::MAX - x).collect(), vec![7_u32; 50]);
    subject.upload(buf, 20, Host::U32(&values))?;
    subject.download(buf, 0, HostMut::U32(&mut all))?;
    ensure(all[..20] == [0; 20] && all[20..] == values, || "indices are not what was uploaded".into())?;
    subject.free(buf);
    let buf = subject.alloc(Role::Scale, 1)?;
    let (state, mut read) = (ScaleState { scale: 0.25, good: 3, skipped: 2, finite: 0 }, ScaleState::default());
    subject.upload(buf, 0, Host::Scale(&state))?;
    subject.download(buf, 0, HostMut::Scale(&mut read))?;
    ensure(state == read, || format!("the loss scale is {read:?} and should be {state:?}"))?;
    subject.free(buf);
    alone(subject)?;
    Ok(subject.sync().map(|()| 0.0)?)
}

/// A group of one, on backends that have collectives of their own: nothing but itself.
fn alone(subject: &mut dyn Backend) -> Tried<()> {
    let invitation = match subject.invite(0) {
        Ok(invitation) => invitation,
        Err(Fault::Unsupported(_)) => return Ok(()),
        Err(fault) => return Err(fault.into()),
    };
    static QUIET: AtomicU32 = AtomicU32::new(0);
    subject.join(Seat { rank: 0, world: 1, invitation, half: false, limit: 60.0, alarm: &QUIET })?;
    for role in [Role::Grad, Role::Weight, Role::Moment] {
        let buf = subject.alloc(role, 3)?;
        let mut all = [0.0; 3];
        subject.upload(buf, 0, Host::F64(&[1.0, 2.0, 3.0]))?;
        if role == Role::Grad {
            subject.all_reduce(buf, 0, 3)?;
        }
        subject.broadcast(buf, 3, 0)?;
        subject.download(buf, 0, HostMut::F64(&mut all))?;
        ensure(first_difference(&all, &[1.0, 2.0, 3.0]).is_none(), || "a group of one changes its sums".into())?;
        subject.free(buf);
    }
    Ok(())
}

/// Updates until the loss scale grows, on backends that scale.
pub(crate) fn grows(q: &mut dyn Backend) -> Tried<f64> {
    let scales = q.info().loss_scale != 1.0;
    let [w, dw] = [q.alloc(Role::Weight, 4)?, q.alloc(Role::Grad, 4)?];
    let [m, v] = [q.alloc(Role::Moment, 4)?, q.alloc(Role::Moment, 4)?];
    let (step, scale) = (q.alloc(Role::Step, 1)?, q.alloc(Role::Scale, 1)?);
    let params = StepParams { update: 1, eps: 1.0, correction1: 1.0, correction2: 1.0, ..bytemuck::Zeroable::zeroed() };
    q.upload(step, 0, Host::Step(&params))?;
    let mut state = ScaleState { scale: 4.0, good: 0, skipped: 2, finite: 0 };
    q.upload(scale, 0, Host::Scale(&state))?;
    // No schedule in use waits longer; where there is none, a few updates show it.
    let most = if scales { 20_000 } else { 5 };
    let mut updates = 0;
    while updates < most && state.scale == 4.0 {
        updates += 1;
        q.adam(w, dw, m, v, 4, 0, step, scale)?;
        q.download(scale, 0, HostMut::Scale(&mut state))?;
        let counted = state.good == updates || state.scale != 4.0;
        ensure(counted && state.finite == 1 && state.skipped == 2, || format!("after {updates} updates: {state:?}"))?;
    }
    for buf in [w, dw, m, v, step, scale] {
        q.free(buf);
    }
    let right = if scales { state.scale == 8.0 && state.good == 0 } else { state.scale == 4.0 };
    ensure(right, || format!("after {updates} good updates the loss scale 4 has become {state:?}")).map(|()| 0.0)
}

/// What is uploaded after a first use counts in the second: nothing is kept aside.
fn reuse(q: &mut dyn Backend, numbers: Numbers) -> Tried<f64> {
    let stride = q.info().align;
    let row = u64::from(stride);
    let [x, y] = [q.alloc(Role::Act, row)?, q.alloc(Role::Act, row)?];
    let [w, b] = [q.alloc(Role::Weight, row)?, q.alloc(Role::Weight, row)?];
    let [indptr, indices, users] = [q.alloc(Role::Index, 3)?, q.alloc(Role::Index, 2)?, q.alloc(Role::Index, 1)?];
    let (values, step) = (q.alloc(Role::Value, 2)?, q.alloc(Role::Step, 1)?);
    let one = |buf| Mat { buf, rows: 1, cols: 1, stride, offset: 0 };
    let noise = Noise { seed: 1, stream: stream::DROPOUT, keep: 1.0 };
    q.upload(indptr, 0, Host::U32(&[0, 1, 2]))?;
    for turn in 1..4_u32 {
        let t = f64::from(turn);
        let mut got = [0.0; 2];
        q.upload(x, 0, Host::F64(&[t]))?;
        q.upload(w, 0, Host::F64(&[t + 1.0]))?;
        q.upload(b, 0, Host::F64(&[t + 2.0]))?;
        q.linear(one(x), one(w), one(b), Curve::Identity, one(y))?;
        q.download(y, 0, HostMut::F64(&mut got[..1]))?;
        // A row of one event is its sign, whatever its weight: the bias tells one user's row from the other's.
        let params = StepParams { update: turn, ..bytemuck::Zeroable::zeroed() };
        q.upload(step, 0, Host::Step(&params))?;
        q.upload(users, 0, Host::U32(&[turn % 2]))?;
        q.upload(values, 0, Host::F64(&[0.0, t]))?;
        let rows = Rows { indptr, indices, values, users, first: 0, count: 1 };
        q.encode_sparse(rows, one(w), one(b), Curve::Identity, noise, step, one(y))?;
        q.download(y, 0, HostMut::F64(&mut got[1..]))?;
        let encoded = t + 2.0 + if turn % 2 == 1 { t + 1.0 } else { 0.0 };
        let wanted = [t * (t + 1.0) + t + 2.0, encoded];
        let tolerance = Tolerance::new(numbers.act, numbers.sum);
        compare(got, wanted, &tolerance).map_err(|e| Wrong::Broken(format!("use number {turn}: {e}")))?;
    }
    for buf in [x, y, w, b, indptr, indices, users, values, step] {
        q.free(buf);
    }
    Ok(0.0)
}

/// The queue's clock beside the host's, which surrounds it.
pub(crate) fn clock(q: &mut dyn Backend) -> Tried<f64> {
    let begin = Instant::now();
    let first = q.mark()?;
    let stride = q.info().align.max(64);
    let mat = |buf| Mat { buf, rows: 64, cols: 64, stride, offset: 0 };
    let len = 64 * u64::from(stride);
    let [x, w, y] = [q.alloc(Role::Act, len)?, q.alloc(Role::Weight, len)?, q.alloc(Role::Act, len)?];
    let bias = Mat { rows: 1, ..mat(w) };
    let work = |q: &mut dyn Backend| (0..20).try_for_each(|_| q.linear(mat(x), mat(w), bias, Curve::Tanh, mat(y)));
    work(q)?;
    let second = q.mark()?;
    work(q)?;
    let third = q.mark()?;
    let (early, late, whole) = (q.seconds(first, second)?, q.seconds(second, third)?, q.seconds(first, third)?);
    let around = begin.elapsed().as_secs_f64();
    let told = || format!("{early} and {late}, together {whole}, of {around} seconds");
    // A clock ticks in microseconds, and two clocks differ a little.
    let tick = 1e-5 + 0.01 * around;
    ensure([early, late].iter().all(|&s| s.is_finite() && s >= 0.0), || format!("marks are out of order: {}", told()))?;
    ensure((early + late - whole).abs() <= tick, || format!("times do not add up: {}", told()))?;
    ensure(whole <= around + tick, || format!("more than the host's time: {}", told()))?;
    let back = q.seconds(third, first)?;
    ensure((whole + back).abs() <= tick, || format!("{back} seconds back where {whole} lead there"))?;
    let none = q.seconds(third, third)?;
    ensure(none.abs() <= tick, || format!("{none} seconds from a mark to itself"))?;
    for _ in 1..MARKS {
        q.mark()?;
    }
    let last = q.mark()?;
    ensure(q.seconds(third, last).is_err(), || "a mark is known beyond the latest 4,096".into())?;
    ensure(q.seconds(last, Mark(u64::MAX)).is_err(), || "a mark that was never given is known".into())?;
    for buf in [x, w, y] {
        q.free(buf);
    }
    Ok(0.0)
}

/// Handles that were freed, never given out, or of another kind, in place of each argument of each operation.
fn handles(q: &mut dyn Backend) -> Tried {
    // An operation that does not exist is an error, too.
    let fails = |what: &str, result: Result<(), Fault>| ensure(result.is_err(), || format!("{what} was accepted"));
    let (never, gone) = (Buf(4_000_000_001), q.alloc(Role::Act, 64)?);
    let (x, index) = (q.alloc(Role::Act, 64)?, q.alloc(Role::Index, 64)?);
    for buf in [gone, gone, never, Buf::NONE] {
        q.free(buf);
    }
    for (buf, what) in [
        (gone, "a freed handle"),
        (never, "a handle never given out"),
        (Buf::NONE, "no buffer"),
        (index, "an index buffer"),
    ] {
        fails(&format!("{what} in an upload"), q.upload(buf, 0, Host::F32(&[1.0])))?;
        fails(&format!("{what} in a download"), q.download(buf, 0, HostMut::F32(&mut [0.0])))?;
    }
    fails("indices in a buffer of activations", q.upload(x, 0, Host::U32(&[1])))?;
    fails("a step in a buffer of activations", q.upload(x, 0, Host::Step(&bytemuck::Zeroable::zeroed())))?;
    let again = q.alloc(Role::Act, 64)?;
    ensure(again != gone && again != x && !again.is_none(), || "a handle was given out twice".into())?;
    for buf in [x, index, again] {
        q.free(buf);
    }
    let numbers = Numbers::of(&q.info()).map_err(Wrong::Broken)?;
    for op in Op::ALL.into_iter().filter(|op| !matches!(op, Op::Memory | Op::Step | Op::Training | Op::Group)) {
        let case = Case { weights: true, users: 4, items: 9, inner: 5, outer: 5, k: 3, ..Case::of(op) };
        match perform(q, &case, numbers, Mode::Misnamed, false) {
            Ok(_) | Err(Wrong::NotImplemented(_)) => {}
            Err(Wrong::Broken(what)) => return Err(Wrong::Broken(format!("{}: {what}", op.name()))),
        }
    }
    Ok(())
}
