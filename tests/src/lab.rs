//! Where one operation is carried out: arguments from numbers, with guard words around every buffer, and
//! results as numbers, once it is certain that nothing else was touched.

use vaecf_core::{
    backend::{Backend, Buf, Fault, Host, HostMut, Mat, Result as Called, Role, Rows, ScaleState, StepParams},
    layout::padded,
    matrix::Matrix,
};

use crate::{
    case::Case,
    compare::first_difference,
    numbers::{Numbers, round},
    op::Op,
    swapped::Swapped,
};

/// Why a trial did not pass.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Wrong {
    /// The backend says that it does not have this.
    NotImplemented(String),
    /// Something is not as it should be, in a sentence.
    Broken(String),
}

impl From<Fault> for Wrong {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unsupported(what) => Self::NotImplemented(what.to_owned()),
            fault => Self::Broken(format!("an error: {fault}")),
        }
    }
}

impl From<vaecf_core::Error> for Wrong {
    fn from(error: vaecf_core::Error) -> Self {
        match error.fault() {
            Some(fault) => fault.clone().into(),
            None => Self::Broken(format!("an error: {error}")),
        }
    }
}

impl From<crate::compare::Mismatch> for Wrong {
    fn from(mismatch: crate::compare::Mismatch) -> Self {
        Self::Broken(mismatch.to_string())
    }
}

/// A trial's result.
pub(crate) type Tried<T = ()> = Result<T, Wrong>;

/// Fails with a sentence unless something holds.
pub(crate) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Tried {
    if holds { Ok(()) } else { Err(Wrong::Broken(otherwise())) }
}

/// Around what is read: whoever reads it and lets it count has a result that is not a number.
const UNREADABLE: f64 = f64::NAN;
/// Around what is written, and in it before: exact in every type.
const UNWRITTEN: f64 = 1536.0;
/// Beside the columns of a view: it may be read, and shows where it counts, even times zero.
const BESIDE: f64 = f64::NAN;
/// Index guards are items that exist, so that reading one is a wrong result and not a crash.
const INDEX_GUARD: u32 = 0;

/// What a buffer held before the operation.
enum Before {
    Floats(Vec<f64>),
    Indices(Vec<u32>),
}

/// A buffer of the operation.
struct Held {
    name: &'static str,
    buf: Buf,
    before: Before,
    used: Use,
}

/// What an operation may do to a buffer.
#[derive(Clone, Copy)]
enum Use {
    /// Nothing.
    Read,
    /// Write these cells, and all of them.
    Write(Mat),
    /// Whatever it likes with these rows.
    Scratch(Mat),
}

/// A result: its name, shape and numbers.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    pub(crate) name: &'static str,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Vec<f64>,
}

/// How an operation is issued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Called.
    Eager,
    /// Captured with another step, and replayed.
    Replayed,
    /// Called until it is known how long it takes.
    Timed,
    /// Called with one wrong handle after the other, each of which must be an error, and then called.
    Misnamed,
}

/// One operation on one backend.
pub(crate) struct Lab<'a> {
    backend: &'a mut dyn Backend,
    pub(crate) case: &'a Case,
    pub(crate) numbers: Numbers,
    pub(crate) mode: Mode,
    align: u32,
    held: Vec<Held>,
    pub(crate) params: StepParams,
    step: Buf,
    scale: Buf,
    /// What one call took, where it was timed.
    pub(crate) seconds: f64,
}

impl Drop for Lab<'_> {
    fn drop(&mut self) {
        for held in &self.held {
            self.backend.free(held.buf);
        }
        self.backend.free(self.step);
        self.backend.free(self.scale);
    }
}

impl<'a> Lab<'a> {
    /// `numbers` are those of the backend under test, whichever this is: both start from the same values.
    pub(crate) fn new(backend: &'a mut dyn Backend, case: &'a Case, numbers: Numbers, mode: Mode) -> Tried<Self> {
        let align = backend.info().align;
        ensure(align > 0, || "the alignment is 0".into())?;
        let update = 1 + (case.seed % 100_000) as u32;
        let params = StepParams {
            update,
            first: case.first - case.first / 2,
            lr: 0.01,
            beta: 0.3,
            grad_factor: 0.125,
            l2: 0.02,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            correction1: 1.0 - 0.9_f64.powf(f64::from(update)),
            correction2: 1.0 - 0.999_f64.powf(f64::from(update)),
        };
        let (step, scale) = (Buf::NONE, Buf::NONE);
        let mut lab = Self { backend, case, numbers, mode, align, held: Vec::new(), params, step, scale, seconds: 0.0 };
        lab.step = lab.backend.alloc(Role::Step, 1)?;
        lab.scale = lab.backend.alloc(Role::Scale, 1)?;
        lab.backend.upload(lab.scale, 0, Host::Scale(&lab.before()))?;
        lab.backend.upload(lab.step, 0, Host::Step(&lab.params))?;
        Ok(lab)
    }

    /// The loss scale's state before the operation: that of a run under way.
    pub(crate) fn before(&self) -> ScaleState {
        let seed = self.case.seed;
        let [good, skipped, finite] = [seed % 7, seed % 3, seed % 2].map(|x| x as u32);
        ScaleState { scale: self.case.scale as f32, good, skipped, finite }
    }

    /// Elements around every matrix, in whole alignments.
    fn guard(&self) -> usize {
        (32_u32.next_multiple_of(self.align)) as usize
    }

    /// Numbers of an argument as its role stores them.
    pub(crate) fn draw(&self, role: Role, number: u32, len: usize) -> Vec<f64> {
        let mut values = self.case.numbers(number, len);
        self.round(role, &mut values);
        values
    }

    /// Rounds numbers to what a role stores.
    pub(crate) fn round(&self, role: Role, values: &mut [f64]) {
        let float = self.numbers.role(role);
        values.iter_mut().for_each(|x| *x = round(float, *x));
    }

    fn floats(
        &mut self,
        name: &'static str,
        role: Role,
        mat: Mat,
        cells: Option<&[f64]>,
        beside: f64,
        used: Use,
    ) -> Tried<Mat> {
        let around = if matches!(used, Use::Read) { UNREADABLE } else { UNWRITTEN };
        let (rows, cols, stride) = (mat.rows as usize, mat.cols as usize, mat.stride as usize);
        let guard = self.guard();
        let mut all = vec![around; guard + rows * stride + guard];
        for row in 0..rows {
            let line = &mut all[guard + row * stride..][..stride];
            match cells {
                Some(cells) => line[..cols].copy_from_slice(&cells[row * cols..][..cols]),
                None => line[..cols].fill(UNWRITTEN),
            }
            line[cols..].fill(beside);
        }
        let buf = self.backend.alloc(role, all.len() as u64)?;
        let place = |m: Mat| Mat { buf, offset: m.offset + guard as u64, ..m };
        let used = match used {
            Use::Read => Use::Read,
            Use::Write(mat) => Use::Write(place(mat)),
            Use::Scratch(mat) => Use::Scratch(place(mat)),
        };
        self.held.push(Held { name, buf, before: Before::Floats(all), used });
        let Some(Held { before: Before::Floats(all), .. }) = self.held.last() else { return Ok(place(mat)) };
        self.backend.upload(buf, 0, Host::F64(all))?;
        Ok(place(mat))
    }

    fn shape(&self, rows: usize, cols: usize) -> Mat {
        let stride = padded(cols as u32, self.align) + self.case.gap * self.align;
        Mat { buf: Buf::NONE, rows: rows as u32, cols: cols as u32, stride, offset: 0 }
    }

    /// A matrix to be read.
    pub(crate) fn input(&mut self, name: &'static str, role: Role, rows: usize, cols: usize, x: &[f64]) -> Tried<Mat> {
        let mat = self.shape(rows, cols);
        self.floats(name, role, mat, Some(x), 0.0, Use::Read)
    }

    /// The same; where the case wants it, as the first columns of a wider matrix.
    pub(crate) fn view(&mut self, name: &'static str, rows: usize, cols: usize, x: &[f64]) -> Tried<Mat> {
        if !self.case.view {
            return self.input(name, Role::Act, rows, cols, x);
        }
        let mat = Mat { cols: cols as u32, ..self.shape(rows, 2 * cols) };
        self.floats(name, Role::Act, mat, Some(x), BESIDE, Use::Read)
    }

    /// A matrix to be written, all of it.
    pub(crate) fn output(&mut self, name: &'static str, role: Role, rows: usize, cols: usize) -> Tried<Mat> {
        let mat = self.shape(rows, cols);
        self.floats(name, role, mat, None, 0.0, Use::Write(mat))
    }

    /// A matrix to be read and written.
    pub(crate) fn in_place(
        &mut self,
        name: &'static str,
        role: Role,
        rows: usize,
        cols: usize,
        x: &[f64],
    ) -> Tried<Mat> {
        let mat = self.shape(rows, cols);
        self.floats(name, role, mat, Some(x), 0.0, Use::Write(mat))
    }

    /// A flat buffer from its first element on, to be written, guarded at its end only.
    pub(crate) fn arena(
        &mut self,
        name: &'static str,
        role: Role,
        x: Option<&[f64]>,
        len: usize,
        write: bool,
    ) -> Tried<Buf> {
        let around = if write { UNWRITTEN } else { UNREADABLE };
        let mut all = x.map_or_else(|| vec![UNWRITTEN; len], <[f64]>::to_vec);
        if role == Role::Weight {
            // An operation may be given it as a row, which ends in padding.
            all.resize(padded(len as u32, self.align) as usize, 0.0);
        }
        all.resize(all.len() + self.guard(), around);
        let buf = self.backend.alloc(role, all.len() as u64)?;
        let mat = Mat { buf, rows: 1, cols: len as u32, stride: len as u32, offset: 0 };
        self.backend.upload(buf, 0, Host::F64(&all))?;
        self.held.push(Held {
            name,
            buf,
            before: Before::Floats(all),
            used: if write { Use::Write(mat) } else { Use::Read },
        });
        Ok(buf)
    }

    /// Scratch: its contents are nobody's business, what lies around it is.
    pub(crate) fn scratch(&mut self, name: &'static str, rows: usize, cols: usize) -> Tried<Mat> {
        let mat = self.shape(rows, cols);
        self.floats(name, Role::Act, mat, None, 0.0, Use::Scratch(mat))
    }

    /// Per-user results: a value for every user of the case's list, of which the window is written.
    pub(crate) fn per_user(&mut self, name: &'static str) -> Tried<Mat> {
        let rows = (self.case.users + self.case.first + 3) as usize;
        let mat = Mat { stride: 1, ..self.shape(rows, 1) };
        let window = Mat { offset: u64::from(self.case.first), rows: self.case.users, ..mat };
        self.floats(name, Role::Value, mat, None, 0.0, Use::Write(window))
    }

    /// Indices to be read.
    fn indices(&mut self, name: &'static str, x: &[u32]) -> Tried<Buf> {
        let mut all = x.to_vec();
        all.resize(x.len() + self.guard(), INDEX_GUARD);
        let buf = self.backend.alloc(Role::Index, all.len() as u64)?;
        self.backend.upload(buf, 0, Host::U32(&all))?;
        self.held.push(Held { name, buf, before: Before::Indices(all), used: Use::Read });
        Ok(buf)
    }

    /// Room for rankings, `rows * cols` items.
    pub(crate) fn ranked(&mut self, name: &'static str, rows: usize, cols: usize) -> Tried<Buf> {
        let all = vec![INDEX_GUARD; rows * cols + self.guard()];
        let buf = self.backend.alloc(Role::Index, all.len() as u64)?;
        let written = Mat { buf, rows: rows as u32, cols: cols as u32, stride: cols as u32, offset: 0 };
        self.held.push(Held { name, buf, before: Before::Indices(all), used: Use::Write(written) });
        Ok(buf)
    }

    /// The batch: a window on the case's users. `stepped`: part of the position comes from the step.
    pub(crate) fn rows(&mut self, history: &Matrix, order: &[u32], stepped: bool) -> Tried<Rows> {
        let indptr: Vec<u32> = history.indptr().iter().map(|&x| x as u32).collect();
        let indptr = self.indices("indptr", &indptr)?;
        let indices = self.indices("indices", history.indices())?;
        let values = match history.values() {
            Some(v) => {
                let v: Vec<f64> = v.iter().map(|&x| f64::from(x)).collect();
                self.arena("values", Role::Value, Some(&v), v.len(), false)?
            }
            None => Buf::NONE,
        };
        let users = if self.case.listed { self.indices("users", order)? } else { Buf::NONE };
        let first = if stepped { self.case.first - self.params.first } else { self.case.first };
        Ok(Rows { indptr, indices, values, users, first, count: self.case.users })
    }

    /// Issues the operation, called or replayed.
    pub(crate) fn call(&mut self, mut call: impl FnMut(&mut dyn Backend, Buf, Buf) -> Called) -> Tried {
        match self.mode {
            Mode::Eager => return Ok(call(self.backend, self.step, self.scale)?),
            Mode::Timed => {
                let mut calls = 1_u32;
                loop {
                    let start = std::time::Instant::now();
                    (0..calls).try_for_each(|_| call(self.backend, self.step, self.scale))?;
                    self.backend.sync()?;
                    let took = start.elapsed().as_secs_f64();
                    self.seconds = took / f64::from(calls);
                    // The first call warms up, and tells nothing unless it is long.
                    if took > 0.03 {
                        return Ok(());
                    }
                    calls *= 2;
                }
            }
            Mode::Misnamed => {
                self.misname(&mut call)?;
                return Ok(call(self.backend, self.step, self.scale)?);
            }
            Mode::Replayed => {}
        }
        // All that may change from step to step is something else while the call is recorded.
        let StepParams { update, first, lr, beta, grad_factor, l2, .. } = self.params;
        let stale = StepParams {
            update: update + 5,
            first: first.saturating_sub(1),
            lr: 2.0 * lr,
            beta: 0.5 * beta,
            grad_factor: 3.0 * grad_factor,
            l2: l2 + 0.5,
            beta1: 0.5,
            beta2: 0.25,
            eps: 0.1,
            correction1: 0.5,
            correction2: 0.75,
        };
        self.backend.upload(self.step, 0, Host::Step(&stale))?;
        self.backend.capture_begin()?;
        let called = call(self.backend, self.step, self.scale);
        // Ended even where the call failed, or the backend would go on recording what comes next.
        let graph = self.backend.capture_end();
        called?;
        let graph = graph?;
        self.backend.upload(self.step, 0, Host::Step(&self.params))?;
        Ok(self.backend.replay(graph)?)
    }

    /// Calls with each of the arguments' handles replaced by one that was freed, one never given out, and one of
    /// another kind.
    fn misname(&mut self, call: &mut impl FnMut(&mut dyn Backend, Buf, Buf) -> Called) -> Tried {
        let (gone, index) = (self.backend.alloc(Role::Act, 4096)?, self.backend.alloc(Role::Index, 4096)?);
        let float = self.backend.alloc(Role::Act, 4096)?;
        self.backend.free(gone);
        let (step, scale) = (self.step, self.scale);
        // Of a batch, the latent sample needs the users alone; and scratch may be left alone.
        let latent = matches!(self.case.op, Op::SampleLatent | Op::SampleLatentGrad);
        let needed = |held: &&Held| match held.used {
            Use::Scratch(_) => false,
            _ => !(latent && ["indptr", "indices", "values"].contains(&held.name)),
        };
        let held = self.held.iter().filter(needed);
        let named = held.map(|held| (held.name, held.buf, matches!(held.before, Before::Indices(_))));
        let arguments: Vec<_> = named.chain([("step", step, false), ("scale", scale, false)]).collect();
        let mut outcome = Ok(());
        for (name, from, is_index) in arguments {
            let other = if is_index { float } else { index };
            for (to, what) in [
                (gone, "a freed handle"),
                (Buf(4_000_000_001), "a handle never given out"),
                (other, "a handle of another kind"),
            ] {
                let mut swapped = Swapped { inner: &mut *self.backend, from, to, named: false };
                // An operation that does not take the step or the scale was not asked with a wrong one.
                let accepted = call(&mut swapped, step, scale).is_ok() && swapped.named;
                if accepted && outcome.is_ok() {
                    outcome = Err(Wrong::Broken(format!("{what} as {name} was accepted")));
                }
            }
        }
        self.backend.free(index);
        self.backend.free(float);
        outcome
    }

    /// The loss scale as it is now.
    pub(crate) fn scale_state(&mut self) -> Tried<ScaleState> {
        let mut state = ScaleState::default();
        self.backend.download(self.scale, 0, HostMut::Scale(&mut state))?;
        Ok(state)
    }

    /// Rows of logits that the backend asks for.
    pub(crate) fn logits_rows(&self) -> usize {
        let batch = self.case.users;
        self.backend.logits_rows(batch, self.case.items).clamp(1, batch.max(1)) as usize
    }

    /// What was written; an error where anything else has changed.
    pub(crate) fn take(&mut self) -> Tried<Vec<Taken>> {
        self.backend.sync()?;
        let mut taken = Vec::new();
        for Held { name, buf, before, used } in &self.held {
            let (before, after) = match before {
                Before::Floats(before) => {
                    let mut after = vec![0.0; before.len()];
                    self.backend.download(*buf, 0, HostMut::F64(&mut after))?;
                    (std::borrow::Cow::Borrowed(before), after)
                }
                Before::Indices(before) => {
                    let mut after = vec![0; before.len()];
                    self.backend.download(*buf, 0, HostMut::U32(&mut after))?;
                    let wide = |v: &[u32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
                    (std::borrow::Cow::Owned(wide(before)), wide(&after))
                }
            };
            let (mat, scratch) = match *used {
                Use::Read => {
                    let at = first_difference(&before, &after);
                    ensure(at.is_none(), || {
                        format!("{name} is only read, but element {} of it was changed", at.unwrap_or(0))
                    })?;
                    continue;
                }
                Use::Write(mat) => (mat, false),
                Use::Scratch(mat) => (mat, true),
            };
            let (rows, cols, stride) = (mat.rows as usize, mat.cols as usize, mat.stride as usize);
            let (mut values, mut left) = (Vec::with_capacity(rows * cols), mat.offset as usize);
            let untouched = |from: usize, to: usize| {
                let at = first_difference(&before[from..to], &after[from..to]);
                ensure(at.is_none(), || {
                    let place = if from == 0 || to == before.len() { "around" } else { "in the padding of" };
                    format!("element {} {place} {name} was written", from + at.unwrap_or(0))
                })
            };
            untouched(0, left)?;
            if scratch {
                untouched(left + rows * stride, before.len())?;
                continue;
            }
            for _ in 0..rows {
                values.extend_from_slice(&after[left..left + cols]);
                let end = (left + stride).min(before.len());
                untouched(left + cols, end)?;
                left = end;
            }
            untouched(left, before.len())?;
            taken.push(Taken { name, rows, cols, values });
        }
        Ok(taken)
    }
}
