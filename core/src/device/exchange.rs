//! What devices of a group have from each other: sums of gradients, and the root's weights. By the devices themselves where
//! all of them can, else through their hosts.

use std::ops::Range;

use bytemuck::cast_slice_mut;

use super::{Buffer, Device, bug};
use crate::{
    backend::{Backend, Buf, Fault, HostMut, Info, Invitation, Master, Seat},
    error::Result,
    group::{Element, Group},
};

/// How the sums of a group are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// There is nothing to add up.
    None,
    /// By the devices themselves.
    Devices,
    /// Through the hosts, and why, in words.
    Hosts(String),
}

impl Device {
    /// Takes over a backend as the device of a member of a group. All members call this together, and from then on do
    /// the same: train, evaluate and recommend as one. Where all backends have collectives of their own, these make
    /// the sums, in half precision if `half` is set and they can; else the hosts do.
    ///
    /// # Errors
    /// Where backends are not of one kind and precision, one cannot join, or the group fails.
    pub fn in_group(backend: Box<dyn Backend>, group: Group, half: bool) -> Result<Self> {
        let mut device = Self::new(backend);
        if group.world() > 1 {
            device.exchange = device.meet(&group, half)?;
        }
        Ok(Self { group, ..device })
    }

    /// The same for a group of one that is joined all the same, to see what that costs.
    ///
    /// # Errors
    /// Where the backend has no collectives of its own, or cannot join.
    pub fn alone_in_group(mut backend: Box<dyn Backend>) -> Result<Self> {
        let (group, invitation) = (Group::default(), backend.invite(0)?);
        backend.join(Self::seat(&group, invitation, false))?;
        Ok(Self { exchange: Exchange::Devices, ..Self::new(backend) })
    }

    fn seat(group: &Group, invitation: Invitation, half: bool) -> Seat {
        let (limit, alarm) = (group.limit().as_secs_f64(), group.alarm().flag());
        Seat { rank: group.rank(), world: group.world(), invitation, half, limit, alarm }
    }

    /// Joins the devices of the other members, where all of them can.
    fn meet(&self, group: &Group, half: bool) -> Result<Exchange> {
        let Info { name, precision, master, align, .. } = &*self.info;
        let own = || format!("{name} {precision} {master:?} {align} {half}").into_bytes();
        group.agree("backend, precision and half sums", own)?;
        let mut state = self.lock();
        let (invitation, why) = match state.backend.invite(group.rank()) {
            Ok(invitation) => (Ok(Some(invitation)), String::new()),
            Err(fault @ Fault::Unsupported(_)) => (Ok(None), format!("{name}: {fault}")),
            Err(fault) => (Err(fault.into()), String::new()),
        };
        let invitation = group.all_well(invitation)?;
        let given = group.all_gather(invitation.as_ref().map_or(&[][..], |invitation| &invitation.bytes))?;
        if let Some(rank) = given.iter().position(Vec::is_empty) {
            let other = || format!("{} has none", group.member(rank as u32));
            return Ok(Exchange::Hosts(if why.is_empty() { other() } else { why }));
        }
        let first = <[u8; 128]>::try_from(&given[0][..]).map_err(|_| bug("an invitation of another length".into()))?;
        // The others are waiting in there: a member's error is told at once, by its caller.
        state.backend.join(Self::seat(group, Invitation { bytes: first }, half))?;
        drop(state);
        group.barrier()?;
        Ok(Exchange::Devices)
    }

    /// The group that this device is a member's of.
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// How the sums of the group are made.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Whether a step can be captured as a whole, sums over the group included.
    pub(crate) fn captures_steps(&self) -> bool {
        self.info.capture && !matches!(self.exchange, Exchange::Hosts(_))
    }

    /// `buffer`, one of weights, gradients or moments, becomes that of the group's root.
    ///
    /// # Errors
    /// What the device or the group reports.
    pub fn broadcast(&self, buffer: &Buffer) -> Result<()> {
        let backend = &mut *self.lock().backend;
        let of_root = |values: &mut [u8]| {
            values.copy_from_slice(&self.group.broadcast(values)?);
            Ok(())
        };
        match (&self.exchange, self.info.master) {
            (Exchange::None, _) => Ok(()),
            (Exchange::Devices, _) => Ok(backend.broadcast(buffer.buf, buffer.len, 0)?),
            (Exchange::Hosts(_), Master::F32) => {
                through_host(backend, buffer.buf, 0..buffer.len, |all: &mut [f32]| of_root(cast_slice_mut(all)))
            }
            (Exchange::Hosts(_), Master::F64) => {
                through_host(backend, buffer.buf, 0..buffer.len, |all: &mut [f64]| of_root(cast_slice_mut(all)))
            }
        }
    }

    /// A range of gradients becomes its sum over the group: by the hosts in place where the device computes in their
    /// memory.
    pub(super) fn sum(&self, backend: &mut dyn Backend, buf: Buf, range: Range<u64>) -> Result<()> {
        let (at, len) = (range.start, range.end - range.start);
        match self.exchange {
            Exchange::None => return Ok(()),
            Exchange::Devices => return Ok(backend.all_reduce(buf, at, len)?),
            Exchange::Hosts(_) => {}
        }
        match backend.lend(buf, at, len) {
            Some(HostMut::F32(values)) => return self.group.sum(values),
            Some(HostMut::F64(values)) => return self.group.sum(values),
            _ => {}
        }
        match self.info.master {
            Master::F32 => through_host(backend, buf, range, |values: &mut [f32]| self.group.sum(values)),
            Master::F64 => through_host(backend, buf, range, |values: &mut [f64]| self.group.sum(values)),
        }
    }
}

/// Elements that pass through the host at once.
const PIECE: u64 = 1 << 22;

/// Changes a range of a buffer by way of copies on the host.
fn through_host<T: Element>(
    backend: &mut dyn Backend,
    buf: Buf,
    range: Range<u64>,
    change: impl Fn(&mut [T]) -> Result<()>,
) -> Result<()> {
    let mut values = Vec::new();
    for at in range.clone().step_by(PIECE as usize) {
        values.resize(PIECE.min(range.end - at) as usize, T::zeroed());
        backend.download(buf, at, T::filled(&mut values))?;
        change(&mut values)?;
        backend.upload(buf, at, T::read(&values))?;
    }
    Ok(())
}
