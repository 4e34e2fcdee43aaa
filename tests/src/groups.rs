//! Groups of several devices: sums, what comes beside and after them, and what is passed on.
//!
//! Members are threads, each with a backend of its own, that do the same with different numbers. What must be exact is
//! made of whole numbers, so that a sum that is late, early, lost or made twice shows as another number.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Duration,
};

use vaecf_core::{
    backend::{Backend, Buf, Curve, Fault, Host, HostMut, Invitation, Mat, Role, ScaleState, Seat, StepParams},
    error::{Error, Kind},
    group::{Group, threads},
    layout::padded,
};

use crate::{
    case::Case,
    compare::{Float, Tolerance, compare, first_difference},
    lab::{Tried, Wrong, ensure},
    numbers::{Numbers, round},
    operations::{column_sums, product},
    suite::{Open, panicked},
};

/// Longer than anything here takes, but what never ends.
const LIMIT: Duration = Duration::from_secs(60);

/// Elements beyond which a case is about the sum alone.
const LARGE: u32 = 1 << 20;

/// Puts a group to a case, and returns the worst error as a fraction of what is allowed.
pub(crate) fn agrees(open: Open<'_>, case: &Case) -> Tried<f64> {
    let members = threads(case.world, LIMIT);
    let ended: Vec<Tried<Told>> = thread::scope(|scope| {
        let running: Vec<_> = members
            .into_iter()
            .map(|group| {
                scope.spawn(move || {
                    let tried = catch_unwind(AssertUnwindSafe(|| member(open, case, &group)));
                    let tried = tried.unwrap_or_else(|panic| Err(panicked(&*panic)));
                    if let Err(wrong) = &tried {
                        group.fail(format!("{wrong:?}"));
                    }
                    tried
                })
            })
            .collect();
        let lost = |_| Err(Wrong::Broken("a member's thread was lost".into()));
        running.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    });
    // Where one has failed the others have, too: a sentence that is not about the others comes first.
    let failed = |told: &&Tried<Told>| matches!(told, Err(Wrong::Broken(what)) if !what.contains("stopped, because"));
    if let Some(Err(wrong)) = ended.iter().find(failed) {
        return Err(wrong.clone());
    }
    let told = ended.into_iter().collect::<Tried<Vec<Told>>>()?;
    for (rank, other) in told.iter().enumerate().skip(1) {
        for ((what, first), (_, other)) in told[0].same.iter().zip(&other.same) {
            let at = first_difference(first, other);
            ensure(at.is_none(), || {
                format!("{what}: rank {rank} has other bits than rank 0, from element {} on", at.unwrap_or(0))
            })?;
        }
    }
    Ok(told.iter().map(|told| told.worst).fold(0.0, f64::max))
}

/// What a member has come to.
#[derive(Default)]
struct Told {
    worst: f64,
    /// What must be the same bits on all members.
    same: Vec<(&'static str, Vec<f64>)>,
}

fn member(open: Open<'_>, case: &Case, group: &Group) -> Tried<Told> {
    let mut opened = open(group.rank());
    let invitation = opened.as_mut().ok().map(|backend| backend.invite(group.rank()));
    // All of them know whether all are there, and can join, before one waits for another within its device. A backend in a
    // shared library has one kind of error for whatever keeps a device from opening; the first has opened before.
    let without = matches!(invitation, Some(Err(Fault::Unsupported(_))));
    let gone = |error: &Error| matches!(error.kind(), Kind::Usage | Kind::Device) && !group.is_root();
    let gone = opened.as_ref().err().is_some_and(gone);
    let said = group.all_gather(&[without.into(), gone.into()])?;
    if said.iter().any(|said| said[0] != 0) {
        return Err(Wrong::NotImplemented("group".into()));
    }
    if said.iter().any(|said| said[1] != 0) {
        return Err(Wrong::NotImplemented(format!("group of {}", case.world)));
    }
    let mut backend = group.all_well(opened)?;
    let invitation = group.all_well(invitation.transpose().map_err(Error::from))?;
    let given = group.all_gather(invitation.as_ref().map_or(&[][..], |given| &given.bytes))?;
    let Ok(bytes) = given[0][..].try_into() else {
        return Err(Wrong::Broken("rank 0 gave no invitation".into()));
    };
    let seat = Seat {
        rank: group.rank(),
        world: group.world(),
        invitation: Invitation { bytes },
        half: case.half,
        limit: LIMIT.as_secs_f64(),
        alarm: group.alarm().flag(),
    };
    backend.join(seat)?;
    let mut bench = Bench::new(&mut *backend, case, group.rank())?;
    bench.sums()?;
    // What comes beside a sum is the same whatever its size.
    if case.items <= LARGE {
        bench.steps()?;
        bench.recorded()?;
        bench.overwrites()?;
        bench.not_finite()?;
        bench.broadcasts()?;
    }
    let told = std::mem::take(&mut bench.told);
    group.clone().leave()?;
    Ok(told)
}

/// An arena as training has it: a layer's weights and bias, and behind them `items` more elements.
struct Bench<'a> {
    q: &'a mut dyn Backend,
    case: &'a Case,
    numbers: Numbers,
    rank: u32,
    /// Elements of the layer, padding included; and of the arena.
    layer: u64,
    len: u64,
    arena: Buf,
    x: Mat,
    dy: Mat,
    dw: Mat,
    db: Mat,
    told: Told,
}

/// Whole numbers from -2 to 2.
fn whole(case: &Case, rank: u32, number: u32, len: usize) -> Vec<f64> {
    let mut random = case.generator(256 + 16 * rank + number);
    (0..len).map(|_| f64::from(random.below(5)) - 2.0).collect()
}

impl<'a> Bench<'a> {
    fn new(q: &'a mut dyn Backend, case: &'a Case, rank: u32) -> Tried<Self> {
        let info = q.info();
        let numbers = Numbers::of(&info).map_err(Wrong::Broken)?;
        let stride = |cols| padded(cols, info.align.max(1));
        let (rows, inner, outer) = (case.users, case.inner, case.outer);
        let weights = u64::from(inner) * u64::from(stride(outer));
        let layer = weights + u64::from(stride(outer));
        let len = layer + u64::from(case.items);
        let arena = q.alloc(Role::Grad, len)?;
        let mut act = |cols| -> Tried<Mat> {
            let buf = q.alloc(Role::Act, u64::from(rows) * u64::from(stride(cols)))?;
            Ok(Mat { buf, rows, cols, stride: stride(cols), offset: 0 })
        };
        let (x, dy) = (act(inner)?, act(outer)?);
        let dw = Mat { buf: arena, rows: inner, cols: outer, stride: stride(outer), offset: 0 };
        let db = Mat { rows: 1, offset: weights, ..dw };
        let mut bench = Self { q, case, numbers, rank, layer, len, arena, x, dy, dw, db, told: Told::default() };
        bench.operands(0)?;
        Ok(bench)
    }

    /// Other operands of the layer's gradient.
    fn operands(&mut self, turn: u32) -> Tried {
        for (mat, number) in [(self.x, 0), (self.dy, 1)] {
            let cells = whole(self.case, self.rank, 2 * turn + number, (mat.rows * mat.cols) as usize);
            for (row, cells) in cells.chunks_exact(mat.cols as usize).enumerate() {
                self.q.upload(mat.buf, row as u64 * u64::from(mat.stride), Host::F64(cells))?;
            }
        }
        Ok(())
    }

    /// The layer's gradient, as a part of the arena, of a member.
    fn gradient_of(&self, rank: u32, turn: u32) -> Vec<f64> {
        let (b, m, n) = (self.case.users as usize, self.case.inner as usize, self.case.outer as usize);
        let x = whole(self.case, rank, 2 * turn, b * m);
        let dy = whole(self.case, rank, 2 * turn + 1, b * n);
        let turned: Vec<f64> = (0..m * b).map(|at| x[at % b * m + at / b]).collect();
        let (weights, bias) = (product(&turned, &dy, m, b, n), column_sums(&dy, n));
        let mut layer = vec![0.0; self.layer as usize];
        for (row, cells) in weights.chunks_exact(n).chain([&bias[..]]).enumerate() {
            layer[row * self.dw.stride as usize..][..n].copy_from_slice(cells);
        }
        layer
    }

    /// Elements behind the layer, of a member.
    fn rest_of(&self, rank: u32, turn: u32) -> Vec<f64> {
        whole(self.case, rank, 8 + turn, self.case.items as usize)
    }

    /// The sum over the members.
    fn sum(&self, of: impl Fn(u32) -> Vec<f64>) -> Vec<f64> {
        let mut sum = of(0);
        (1..self.case.world).for_each(|rank| sum.iter_mut().zip(of(rank)).for_each(|(sum, x)| *sum += x));
        sum
    }

    fn read(&mut self, buf: Buf, len: u64) -> Tried<Vec<f64>> {
        let mut all = vec![0.0; len as usize];
        self.q.download(buf, 0, HostMut::F64(&mut all))?;
        Ok(all)
    }

    fn exactly(&self, what: &str, got: &[f64], wanted: &[f64]) -> Tried {
        compare(got, wanted, &Tolerance::EXACT).map_err(|e| Wrong::Broken(format!("{what}: {e}")))?;
        Ok(())
    }

    /// A part of a buffer that begins and ends somewhere, summed; the rest of it is not touched.
    fn sums(&mut self) -> Tried {
        let numbers = |rank: u32| {
            let case = Case { seed: self.case.seed ^ u64::from(rank) << 32, ..self.case.clone() };
            let own = case.numbers(9, self.len as usize);
            own.into_iter().map(|x| round(self.numbers.sum, x)).collect::<Vec<f64>>()
        };
        let own = numbers(self.rank);
        let (from, to) = (self.layer as usize + self.case.items as usize / 3, self.len as usize - 1);
        let from = from.min(to);
        let sum = self.sum(numbers);
        let sizes = self.sum(|rank| numbers(rank).iter().map(|x| x.abs()).collect());
        self.q.upload(self.arena, 0, Host::F64(&own))?;
        self.q.all_reduce(self.arena, from as u64, (to - from) as u64)?;
        let got = self.read(self.arena, self.len)?;
        for range in [0..from, to..self.len as usize] {
            let at = first_difference(&got[range.clone()], &own[range.clone()]);
            ensure(at.is_none(), || {
                format!("element {} is none of the sum and was changed", range.start + at.unwrap_or(0))
            })?;
        }
        let tolerance = Tolerance::new(self.numbers.sum, self.numbers.sum).terms(self.case.world as usize).factor(4.0);
        let tolerance = match (self.case.half, self.numbers.act) {
            (false, _) => tolerance,
            (true, Float::F16) => tolerance.operands(Float::F16),
            (true, _) => tolerance.operands(Float::Bf16),
        };
        let found = compare(&got[from..to], &sum[from..to], &tolerance.magnitude(&sizes[from..to]));
        let worst = found.map_err(|e| Wrong::Broken(format!("a sum of {} members: {e}", self.case.world)))?.fraction();
        self.told.worst = self.told.worst.max(worst);
        self.told.same.push(("a sum", got[from..to].to_vec()));
        Ok(())
    }

    /// Steps as training makes them, called and replayed: the part behind the layer is summed beside the gradient of
    /// the layer, then that, and an update reads all of it.
    fn steps(&mut self) -> Tried {
        let zeros = vec![0.0; self.len as usize];
        // Padding is zero in training, too.
        self.q.upload(self.arena, 0, Host::F64(&zeros))?;
        let [w, m, v] = [Role::Weight, Role::Moment, Role::Moment].map(|role| self.q.alloc(role, self.len));
        let (w, m, v, step, scale) = (w?, m?, v?, self.q.alloc(Role::Step, 1)?, self.q.alloc(Role::Scale, 1)?);
        let params = StepParams {
            update: 1,
            lr: 0.125,
            grad_factor: 0.5,
            eps: 1.0,
            correction1: 1.0,
            correction2: 1.0,
            ..bytemuck::Zeroable::zeroed()
        };
        self.q.upload(step, 0, Host::Step(&params))?;
        self.q.upload(scale, 0, Host::Scale(&ScaleState::default()))?;
        let (arena, layer, len) = (self.arena, self.layer, self.len);
        let (x, dy, dw, db) = (self.x, self.dy, self.dw, self.db);
        let calls = |q: &mut dyn Backend| -> Result<(), Fault> {
            q.all_reduce(arena, layer, len - layer)?;
            q.linear_grad_weight(x, dy, dw, db)?;
            q.all_reduce(arena, 0, layer)?;
            q.adam(w, arena, m, v, len, 0, step, scale)
        };
        let mut graph = None;
        let turns = if self.q.info().capture { 5 } else { 2 };
        for turn in 0..turns {
            self.operands(turn)?;
            let rest = self.rest_of(self.rank, turn);
            self.q.upload(arena, layer, Host::F64(&rest))?;
            self.q.upload(m, 0, Host::F64(&zeros))?;
            match (turn, graph) {
                (0 | 1, _) => calls(self.q)?,
                (_, None) => {
                    self.q.capture_begin()?;
                    let called = calls(self.q);
                    // Ended even where a call failed, or all that comes would be recorded.
                    let ended = self.q.capture_end();
                    called?;
                    self.q.replay(*graph.insert(ended?))?;
                }
                (_, Some(graph)) => self.q.replay(graph)?,
            }
            // Without decay of the moments, the first is half of the gradient.
            let sum = self.sum(|rank| [self.gradient_of(rank, turn), self.rest_of(rank, turn)].concat());
            let wanted: Vec<f64> = sum.iter().map(|x| 0.5 * x).collect();
            let got = self.read(m, len)?;
            let how = if turn < 2 { "called" } else { "replayed" };
            self.exactly(&format!("what an update makes of sums, {how} (turn {turn})"), &got, &wanted)?;
            let got = self.read(w, len)?;
            self.told.same.push(("weights after an update", got));
        }
        for buf in [w, m, v, step, scale] {
            self.q.free(buf);
        }
        Ok(())
    }

    /// A recording that ends with a sum, which nothing in it waits for.
    fn recorded(&mut self) -> Tried {
        if !self.q.info().capture {
            return Ok(());
        }
        self.q.capture_begin()?;
        let called = self.q.linear_grad_weight(self.x, self.dy, self.dw, self.db);
        let called = called.and_then(|()| self.q.all_reduce(self.arena, 0, self.layer));
        let ended = self.q.capture_end();
        called?;
        let graph = ended?;
        for turn in 0..2 {
            self.operands(turn)?;
            self.q.replay(graph)?;
            let got = self.read(self.arena, self.layer)?;
            let sum = self.sum(|rank| self.gradient_of(rank, turn));
            self.exactly("a sum at the end of a recording", &got, &sum)?;
        }
        Ok(())
    }

    /// What is written after a sum stays, and so does what is written into a part of it.
    fn overwrites(&mut self) -> Tried {
        let rest = self.rest_of(self.rank, 0);
        self.operands(0)?;
        self.q.upload(self.arena, self.layer, Host::F64(&rest))?;
        self.q.all_reduce(self.arena, 0, self.len)?;
        self.q.linear_grad_weight(self.x, self.dy, self.dw, self.db)?;
        let got = self.read(self.arena, self.len)?;
        let own = self.gradient_of(self.rank, 0);
        self.exactly("a gradient that is written over a sum", &got[..self.layer as usize], &own)?;
        let sum = self.sum(|rank| self.rest_of(rank, 0));
        self.exactly("the sum beside it", &got[self.layer as usize..], &sum)?;
        self.q.all_reduce(self.arena, 0, self.len)?;
        let after = whole(self.case, self.rank, 15, self.len as usize);
        self.q.upload(self.arena, 0, Host::F64(&after))?;
        let got = self.read(self.arena, self.len)?;
        self.exactly("what is uploaded over a sum", &got, &after)
    }

    /// What is not finite on one member is finite on none, and an update is skipped by all.
    fn not_finite(&mut self) -> Tried {
        let last = (self.case.world - 1) as usize;
        // Twice what half precision with a loss scale can hold, where sums travel so.
        let large = if self.case.half && self.numbers.act == Float::F16 && last > 0 { Some(60_000.0) } else { None };
        for (what, own) in [
            ("an infinity on one member", [0.0, f64::INFINITY]),
            ("what is not a number on one member", [0.0, f64::NAN]),
        ]
        .into_iter()
        .chain(large.map(|x| ("a sum beyond half precision", [x, x])))
        {
            let mut all = whole(self.case, self.rank, 14, self.len as usize);
            *all.last_mut().ok_or_else(|| Wrong::Broken("an empty arena".into()))? =
                own[usize::from(self.rank as usize == last)];
            self.q.upload(self.arena, 0, Host::F64(&all))?;
            self.q.all_reduce(self.arena, 0, self.len)?;
            let got = self.read(self.arena, self.len)?;
            ensure(!got[all.len() - 1].is_finite(), || format!("{what} has become {}", got[all.len() - 1]))?;
        }
        Ok(())
    }

    /// Each role, from the last member and from the first; what lies beyond the length stays.
    fn broadcasts(&mut self) -> Tried {
        let (len, most) = (self.case.items, padded(self.case.items + 1, self.q.info().align.max(1)));
        let row = |buf, rows| Mat { buf, rows, cols: len, stride: most, offset: 0 };
        let (none, out) = (self.q.alloc(Role::Weight, most.into())?, self.q.alloc(Role::Act, most.into())?);
        for (turn, root) in [self.case.world - 1, 0].into_iter().enumerate() {
            for (role, number) in [(Role::Weight, 10), (Role::Grad, 11), (Role::Moment, 12)] {
                let of = |rank| whole(self.case, rank, number + 3 * turn as u32, len as usize + 1);
                let (own, wanted) = (of(self.rank), of(root));
                let buf = self.q.alloc(role, most.into())?;
                self.q.upload(buf, 0, Host::F64(&own))?;
                self.q.broadcast(buf, len.into(), root)?;
                if role == Role::Weight {
                    // What operations read: a sum of nothing and a bias.
                    let x = Mat { cols: 1, ..self.x.top(1) };
                    let w = Mat { rows: 1, ..row(none, 1) };
                    self.q.linear(x, w, row(buf, 1), Curve::Identity, row(out, 1))?;
                    let got = self.read(out, len.into())?;
                    let what = format!("weights of rank {root} as operations read them");
                    self.exactly(&what, &got, &wanted[..len as usize])?;
                }
                let got = self.read(buf, u64::from(len) + 1)?;
                self.exactly(&format!("{role:?} of rank {root}"), &got[..len as usize], &wanted[..len as usize])?;
                self.exactly(
                    &format!("{role:?} beyond what was passed on"),
                    &got[len as usize..],
                    &own[len as usize..],
                )?;
                self.q.free(buf);
            }
        }
        self.q.free(none);
        self.q.free(out);
        Ok(())
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        for buf in [self.arena, self.x.buf, self.dy.buf] {
            self.q.free(buf);
        }
    }
}
