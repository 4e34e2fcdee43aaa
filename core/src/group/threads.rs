//! Members that are threads of one process.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    time::{Duration, Instant},
};

use super::{Alarm, Broken, Group, Link};

/// Seconds after which what waits looks at the alarm.
const LOOK: Duration = Duration::from_millis(20);

/// A group of `world` members, in the order of ranks: one for each thread.
pub fn threads(world: u32, limit: Duration) -> Vec<Group> {
    if world <= 1 {
        return vec![Group { limit, ..Group::default() }];
    }
    let (ends, alarm) = links(world);
    let group = |(rank, end)| Group::new(rank, world, limit, alarm.clone(), Box::new(end)).beside(world);
    (0..).zip(ends).map(group).collect()
}

/// The ends of the ways between `world` threads, in the order of ranks, and their alarm: what [`threads`] makes a group
/// of.
pub fn links(world: u32) -> (Vec<Threads>, Alarm) {
    let alarm = Alarm::default();
    let mut ends: Vec<Threads> = (0..world)
        .map(|rank| Threads { rank, to: Vec::new(), from: Vec::new(), alarm: alarm.clone(), left: false })
        .collect();
    for from in 0..world as usize {
        for to in 0..world as usize {
            let (sender, receiver) = channel();
            ends[from].to.push(sender);
            // Receivers come in the order of those who send.
            ends[to].from.push(receiver);
        }
    }
    (ends, alarm)
}

/// A thread's end.
pub struct Threads {
    rank: u32,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    alarm: Alarm,
    left: bool,
}

impl Link for Threads {
    fn name(&self) -> &'static str {
        "threads"
    }

    fn exchange(
        &mut self,
        out: &[(u32, &[u8])],
        into: &mut [(u32, &mut [u8])],
        deadline: Instant,
    ) -> Result<(), Broken> {
        for &(to, bytes) in out {
            // One that is gone is told of where it is waited for.
            let _ = self.to[to as usize].send(bytes.to_vec());
        }
        for (from, into) in into {
            let bytes = loop {
                match self.from[*from as usize].recv_timeout(LOOK) {
                    Ok(bytes) => break bytes,
                    Err(_) if self.alarm.is_raised() => return Err(Broken::Alarm),
                    Err(RecvTimeoutError::Disconnected) => return Err(Broken::Gone(*from)),
                    Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => return Err(Broken::Silent(*from)),
                    Err(RecvTimeoutError::Timeout) => {}
                }
            };
            if bytes.len() != into.len() {
                return Err(Broken::Other(out_of_step(*from, bytes.len(), into.len())));
            }
            into.copy_from_slice(&bytes);
        }
        Ok(())
    }

    fn fail(&mut self, why: &str) {
        self.alarm.raise(why);
    }

    fn leave(&mut self) {
        self.left = true;
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.left {
            self.alarm.raise(format!("{} ended without a word", self.member(self.rank)));
        }
    }
}

/// A bug: members do not call the same methods in the same order.
pub(super) fn out_of_step(from: u32, sent: usize, wanted: usize) -> String {
    format!("a bug in vaecf, please report it: rank {from} sent {sent} bytes where {wanted} were due")
}
