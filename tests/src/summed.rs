//! Collectives for a backend that has none, on the host: what the trials of a group are tried on where there are no
//! devices that have them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use vaecf_core::{
    backend::{Backend, Buf, Fault, Host, HostMut, Invitation, Mat, Result, Seat},
    forward_backend,
    group::{Group, threads},
};

use crate::{compare::Float, numbers::round};

/// Places in a group that nobody has taken yet, by rank.
type Places = Vec<Option<Group>>;

/// The last number in an invitation; and groups whose members have not all come yet, by theirs.
static MEETINGS: Mutex<(u64, BTreeMap<u64, Places>)> = Mutex::new((0, BTreeMap::new()));

/// A backend that sums with others of its kind in the same process, each used by a thread of its own.
pub struct Summed<B> {
    inner: B,
    group: Option<Group>,
    half: Option<Float>,
    /// Numbers that are yet to be written, where a fault has them late.
    late: Option<(Buf, u64, Vec<f64>)>,
    /// What is shown of weights, where a fault has operations read others.
    shown: BTreeMap<u32, Vec<f64>>,
    sums: u32,
    /// One of [`crate::mutants::FAULTS`]; empty where there is none.
    fault: &'static str,
}

impl<B: Backend> Summed<B> {
    /// Around a backend.
    pub fn new(inner: B) -> Self {
        Self { inner, group: None, half: None, late: None, shown: BTreeMap::new(), sums: 0, fault: "" }
    }

    /// The same with a fault.
    pub(crate) fn with(self, fault: &'static str) -> Self {
        Self { fault, ..self }
    }

    fn has(&self, fault: &str) -> bool {
        self.fault == fault
    }

    fn group(&self) -> Result<&Group> {
        self.group.as_ref().ok_or_else(|| Fault::Other("no group was joined".into()))
    }

    fn write_late(&mut self) -> Result {
        match self.late.take() {
            Some((buf, at, values)) => self.inner.upload(buf, at, Host::F64(&values)),
            None => Ok(()),
        }
    }

    /// What becomes of a sum, with the fault.
    fn summed(&self, values: &mut [f64], own: &[f64], all: &[Vec<f64>]) {
        let rank = self.group.as_ref().map_or(0, Group::rank);
        let last = |x: &mut f64| *x = f64::from(f32::from_bits((*x as f32).to_bits() ^ 1));
        match self.fault {
            "sums are averages" => values.iter_mut().for_each(|x| *x /= all.len() as f64),
            "the last member is left out of sums" if all.len() > 1 => {
                values.iter_mut().zip(&all[all.len() - 1]).for_each(|(sum, x)| *sum -= x);
            }
            "a member counts itself twice" => values.iter_mut().zip(own).for_each(|(sum, x)| *sum += x),
            "members have sums of other bits" if rank > 0 => values.iter_mut().for_each(last),
            "what is not finite is lost in sums" => values.iter_mut().for_each(|x| *x = x.clamp(-3e38, 3e38)),
            "what is not a number is lost in sums" => {
                values.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
            }
            "sums are rounded to half precision" => values.iter_mut().for_each(|x| *x = round(Float::F16, *x)),
            _ => {}
        }
    }
}

impl<B: Backend> Backend for Summed<B> {
    forward_backend! { self, self.inner;
        info alloc free sync
        encode_sparse encode_sparse_grad linear linear_grad_input
        sample_latent sample_latent_grad likelihood top_k
        logits_rows longest_list decode_loss_grad recommend
        mark seconds ceilings
    }

    fn upload(&mut self, dst: Buf, at: u64, src: Host<'_>) -> Result {
        if !self.has("what is written over a sum is lost") {
            self.write_late()?;
        }
        self.inner.upload(dst, at, src)
    }

    fn download(&mut self, src: Buf, at: u64, dst: HostMut<'_>) -> Result {
        self.write_late()?;
        match (self.shown.get(&src.0), dst) {
            (Some(shown), HostMut::F64(dst)) => {
                let (at, n) = (at as usize, dst.len());
                let beyond = n - n.min(shown.len() - at.min(shown.len()));
                dst[..n - beyond].copy_from_slice(&shown[at..at + n - beyond]);
                self.inner.download(src, (at + n - beyond) as u64, HostMut::F64(&mut dst[n - beyond..]))
            }
            (_, dst) => self.inner.download(src, at, dst),
        }
    }

    fn linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        if !self.has("what is written over a sum is lost") {
            self.write_late()?;
        }
        self.inner.linear_grad_weight(x, dy, dw, db)
    }

    fn adam(&mut self, w: Buf, dw: Buf, m: Buf, v: Buf, len: u64, decayed: u64, step: Buf, scale: Buf) -> Result {
        if !self.has("an update does not wait for sums") {
            self.write_late()?;
        }
        self.inner.adam(w, dw, m, v, len, decayed, step, scale)
    }

    fn invite(&mut self, rank: u32) -> Result<Invitation> {
        let mut bytes = [0; 128];
        if rank == 0 {
            let mut meetings = MEETINGS.lock().unwrap_or_else(PoisonError::into_inner);
            meetings.0 += 1;
            bytes[..8].copy_from_slice(&meetings.0.to_le_bytes());
        }
        Ok(Invitation { bytes })
    }

    fn join(&mut self, seat: Seat) -> Result {
        let mut number = [0; 8];
        number.copy_from_slice(&seat.invitation.bytes[..8]);
        let number = u64::from_le_bytes(number);
        let mut meetings = MEETINGS.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = Duration::try_from_secs_f64(seat.limit).unwrap_or(Duration::MAX);
        let all = || threads(seat.world, limit).into_iter().map(Some).collect();
        let meeting = meetings.1.entry(number).or_insert_with(all);
        let group = meeting.get_mut(seat.rank as usize).and_then(Option::take);
        if meeting.iter().all(Option::is_none) {
            meetings.1.remove(&number);
        }
        drop(meetings);
        let group = group.ok_or_else(|| Fault::Other("this place in the group is taken".into()))?;
        group.barrier().map_err(|e| Fault::Other(e.to_string()))?;
        let float = if self.inner.info().precision == "f16" { Float::F16 } else { Float::Bf16 };
        (self.group, self.half) = (Some(group), seat.half.then_some(float));
        Ok(())
    }

    fn all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result {
        self.write_late()?;
        self.sums += 1;
        let (at, len) = match self.fault {
            "a sum begins at the buffer's start" => (0, len),
            "a sum ends one element early" => (at, len.saturating_sub(1)),
            "a sum begins one element early" => (at.saturating_sub(1), len + at.min(1)),
            _ => (at, len),
        };
        let mut own = vec![0.0; len as usize];
        self.inner.download(buf, at, HostMut::F64(&mut own))?;
        if let Some(float) = self.half {
            own.iter_mut().for_each(|x| *x = round(float, *x));
        }
        let said = self.group()?.all_gather(bytemuck::cast_slice(&own)).map_err(|e| Fault::Other(e.to_string()))?;
        let all: Vec<Vec<f64>> = said.iter().map(|said| bytemuck::pod_collect_to_vec(said)).collect();
        let mut values = vec![0.0; own.len()];
        for part in &all {
            for (sum, x) in values.iter_mut().zip(part) {
                *sum += x;
                if let Some(float) = self.half {
                    *sum = round(float, *sum);
                }
            }
        }
        self.summed(&mut values, &own, &all);
        if self.has("every seventh sum is left out") && self.sums.is_multiple_of(7) {
            return Ok(());
        }
        self.late = Some((buf, at, values));
        if matches!(self.fault, "an update does not wait for sums" | "what is written over a sum is lost") {
            return Ok(());
        }
        self.write_late()
    }

    fn broadcast(&mut self, buf: Buf, len: u64, root: u32) -> Result {
        self.write_late()?;
        let root = if self.has("all is passed on by rank 0") { 0 } else { root };
        let len = len + u64::from(self.has("one element more is passed on"));
        let mut own = vec![0.0; len as usize];
        self.inner.download(buf, 0, HostMut::F64(&mut own))?;
        let said = self.group()?.all_gather(bytemuck::cast_slice(&own)).map_err(|e| Fault::Other(e.to_string()))?;
        let values: Vec<f64> = bytemuck::pod_collect_to_vec(&said[root as usize]);
        if self.has("operations read weights as they were before they were passed on") {
            self.shown.insert(buf.0, values);
            return Ok(());
        }
        self.inner.upload(buf, 0, Host::F64(&values))
    }
}
