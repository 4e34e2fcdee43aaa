//! The members of a run on several devices, and what they tell each other from host to host.
//!
//! Every member runs the same program on its share of each batch (data parallelism; Goyal et al. 2017, section 2).
//! A [`Group`] carries the few things that are not on a device: what was decided, losses, rankings. Gradients go from
//! device to device where a backend can ([`Backend::all_reduce`](crate::backend::Backend::all_reduce)), else
//! through here.
//!
//! Members call the same methods in the same order. A sum is taken in the order of ranks, so every member has the same
//! bits, and so has every run of as many members. Whatever goes wrong anywhere ends the wait of all others: a
//! member that fails says why ([`Group::fail`]), one that ends without a word is noticed, and nobody is waited for
//! longer than the limit.

use std::{
    fmt,
    ops::{AddAssign, Range},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    backend::{Fault, Host, HostMut},
    error::{Error, Result},
};

mod launch;
mod tcp;
mod threads;

pub use launch::{Launch, launched};
pub use tcp::meet;
pub use threads::{Threads, links, threads};

/// How long a member is waited for, unless the caller says otherwise.
pub const LIMIT: Duration = Duration::from_secs(120);

/// How long members that have waited in vain wait for each other.
const MEETING: Duration = Duration::from_secs(5);

/// Elements that are summed at once, which bounds what a sum takes beside its operand.
pub(crate) const PIECE: usize = 1 << 20;

/// The way between the members of a group, whose one end this is. A [`Group`] is made of it, and is its only caller.
pub trait Link: Send {
    /// What carries it: `threads`, `TCP`, `MPI`.
    fn name(&self) -> &'static str;

    /// A member in words: `rank 2 (host, process 4711)`.
    fn member(&self, rank: u32) -> String {
        format!("rank {rank}")
    }

    /// Sends bytes to members and fills buffers with what these send, at the same time, so that no order of members
    /// can make them wait for each other. Both lists begin with the member after this one and go round; each
    /// member appears once at most, this one never, and with no bytes where there is nothing to say.
    ///
    /// # Errors
    /// That a member was silent until the deadline or is gone; or that the alarm was raised meanwhile.
    fn exchange(
        &mut self,
        out: &[(u32, &[u8])],
        into: &mut [(u32, &mut [u8])],
        deadline: Instant,
    ) -> std::result::Result<(), Broken>;

    /// Tells every member why this one ends early, as far as that can be done at once.
    fn fail(&mut self, why: &str);

    /// Ends the link in peace: the others will not take this end for a failure. All members call it together.
    fn leave(&mut self);
}

/// Why an exchange was not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The deadline passed without a word of this member.
    Silent(u32),
    /// This member has ended without a word.
    Gone(u32),
    /// The alarm says why.
    Alarm,
    /// Anything else, in words.
    Other(String),
}

/// Raised when a group has failed, once and for all; what waits looks at it. Its few bytes are never given back, so that
/// a device may look at them whatever has ended meanwhile.
#[derive(Clone)]
pub struct Alarm {
    raised: &'static AtomicU32,
    why: Arc<Mutex<Option<String>>>,
}

impl Default for Alarm {
    fn default() -> Self {
        Self { raised: Box::leak(Box::default()), why: Arc::default() }
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alarm({:?})", self.why())
    }
}

impl Alarm {
    /// Raises it; the first reason stays.
    pub fn raise(&self, why: impl Into<String>) {
        self.lock().get_or_insert_with(|| why.into());
        self.raised.store(1, Ordering::Release);
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire) != 0
    }

    /// Why it was raised.
    pub fn why(&self) -> Option<String> {
        self.lock().clone()
    }

    /// What is not zero any more when it is raised.
    pub fn flag(&self) -> &'static AtomicU32 {
        self.raised
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A member's part in a group. Cloning is cheap; a group of one needs nothing.
///
/// The last clone to go tells the others that this member has ended; only [`Group::leave`] does so in peace.
#[derive(Clone)]
pub struct Group {
    rank: u32,
    world: u32,
    /// Members on this one's host, itself among them.
    neighbours: u32,
    limit: Duration,
    alarm: Alarm,
    link: Option<Arc<Mutex<Box<dyn Link>>>>,
}

impl Default for Group {
    fn default() -> Self {
        Self { rank: 0, world: 1, neighbours: 1, limit: LIMIT, alarm: Alarm::default(), link: None }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group(rank {} of {})", self.rank, self.world)
    }
}

/// The part of `count` that falls to a rank: parts are consecutive and differ by one at the most.
pub fn share(count: u32, rank: u32, world: u32) -> Range<u32> {
    let bound = |rank: u32| (u64::from(count) * u64::from(rank) / u64::from(world.max(1))) as u32;
    bound(rank)..bound(rank + 1)
}

/// What a group adds up.
pub trait Element: bytemuck::Pod + AddAssign {
    /// Numbers that a device reads.
    fn read(values: &[Self]) -> Host<'_>;
    /// Room that a device fills.
    fn filled(values: &mut [Self]) -> HostMut<'_>;
}

impl Element for f32 {
    fn read(values: &[Self]) -> Host<'_> {
        Host::F32(values)
    }
    fn filled(values: &mut [Self]) -> HostMut<'_> {
        HostMut::F32(values)
    }
}

impl Element for f64 {
    fn read(values: &[Self]) -> Host<'_> {
        Host::F64(values)
    }
    fn filled(values: &mut [Self]) -> HostMut<'_> {
        HostMut::F64(values)
    }
}

impl Group {
    /// Member `rank` of `world`, at its end of a link whose alarm this is. Nobody is waited for longer than `limit`.
    pub fn new(rank: u32, world: u32, limit: Duration, alarm: Alarm, link: Box<dyn Link>) -> Self {
        Self { rank, world, neighbours: 1, limit, alarm, link: Some(Arc::new(Mutex::new(link))) }
    }

    /// The same member, with so many members on its host, itself among them: they share the host's memory.
    #[must_use]
    pub fn beside(self, neighbours: u32) -> Self {
        Self { neighbours: neighbours.max(1), ..self }
    }

    /// Members on this one's host, itself among them.
    pub fn neighbours(&self) -> u32 {
        self.neighbours
    }

    /// Which member this is, from 0.
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// How many members there are.
    pub fn world(&self) -> u32 {
        self.world
    }

    /// Whether this member is the one that writes, shows and decides.
    pub fn is_root(&self) -> bool {
        self.rank == 0
    }

    /// How long a member is waited for.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// What is raised when the group has failed.
    pub fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// What carries it; none for a group of one.
    pub fn carrier(&self) -> Option<&'static str> {
        self.link().map(|link| link.name())
    }

    /// A member in words.
    pub fn member(&self, rank: u32) -> String {
        self.link().map_or_else(|| format!("rank {rank}"), |link| link.member(rank))
    }

    /// What each member says, in the order of ranks.
    ///
    /// # Errors
    /// Why the group has failed.
    pub fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(mut link) = self.link() else { return Ok(vec![own.to_vec()]) };
        let (me, others) = (self.rank as usize, self.others());
        let len = (own.len() as u64).to_le_bytes();
        let mut lens = vec![[0; 8]; self.world as usize];
        self.exchange(&mut **link, &others, |_| &len, &mut lens)?;
        let mut all: Vec<Vec<u8>> = lens.iter().map(|&len| vec![0; u64::from_le_bytes(len) as usize]).collect();
        all[me] = own.to_vec();
        self.exchange(&mut **link, &others, |_| own, &mut all)?;
        Ok(all)
    }

    /// What the root says, to all. The others' `said` is not looked at.
    ///
    /// # Errors
    /// Why the group has failed.
    pub fn broadcast(&self, said: &[u8]) -> Result<Vec<u8>> {
        let own = if self.is_root() { said } else { &[] };
        Ok(self.all_gather(own)?.swap_remove(0))
    }

    /// What the root comes to, on every member: only the root's `decide` is called, and an error of its own is for the
    /// caller to tell ([`Group::fail`]).
    ///
    /// # Errors
    /// That of `decide` on the root; why the group has failed.
    pub fn from_root<T: Serialize + DeserializeOwned>(&self, decide: impl FnOnce() -> Result<T>) -> Result<T> {
        if self.world == 1 {
            return decide();
        }
        let said = match self.is_root() {
            true => serde_json::to_vec(&decide()?).map_err(|e| Error::failure(e.to_string()))?,
            false => Vec::new(),
        };
        serde_json::from_slice(&self.broadcast(&said)?).map_err(|e| Error::failure(e.to_string()))
    }

    /// The same member, but one that waits so long for the others.
    #[must_use]
    pub fn waiting(&self, limit: Duration) -> Self {
        Self { limit, ..self.clone() }
    }

    /// The same member, but one that waits for the others as long as they are there.
    #[must_use]
    pub fn at_leisure(&self) -> Self {
        self.waiting(Duration::from_secs(u32::MAX.into()))
    }

    /// Sums over the members, element by element and in the order of ranks: the same bits for all.
    ///
    /// # Errors
    /// Why the group has failed.
    pub fn sum<T: Element>(&self, values: &mut [T]) -> Result<()> {
        let Some(mut link) = self.link() else { return Ok(()) };
        let (me, others) = (self.rank as usize, self.others());
        let mut parts: Vec<Vec<T>> = vec![Vec::new(); self.world as usize];
        for piece in values.chunks_mut(PIECE) {
            // Each member adds up one part of all, and sends it to the others.
            let len = piece.len() as u32;
            let part = |rank: u32| {
                let share = share(len, rank, self.world);
                share.start as usize..share.end as usize
            };
            let own = part(self.rank);
            for (rank, into) in parts.iter_mut().enumerate() {
                into.resize(if rank == me { 0 } else { own.len() }, T::zeroed());
            }
            let bytes = |rank: u32| bytemuck::cast_slice(&piece[part(rank)]);
            self.exchange(&mut **link, &others, bytes, &mut bytes_of(&mut parts))?;
            parts[me].extend_from_slice(&piece[own.clone()]);
            let (first, rest) = parts.split_at_mut(1);
            for more in rest {
                first[0].iter_mut().zip(more.iter()).for_each(|(sum, &value)| *sum += value);
            }
            piece[own].copy_from_slice(&first[0]);
            let (mut into, mut left) = (Vec::with_capacity(others.len() + 1), &mut piece[..]);
            for rank in 0..self.world {
                let (head, tail) = std::mem::take(&mut left).split_at_mut(part(rank).len());
                into.push(bytemuck::cast_slice_mut(if rank == self.rank { &mut [] } else { head }));
                left = tail;
            }
            let sums = std::mem::take(&mut first[0]);
            self.exchange(&mut **link, &others, |_| bytemuck::cast_slice(&sums), &mut into)?;
            parts[0] = sums;
        }
        Ok(())
    }

    /// Waits for all members.
    ///
    /// # Errors
    /// Why the group has failed.
    pub fn barrier(&self) -> Result<()> {
        self.all_gather(&[]).map(drop)
    }

    /// Refuses members that do not have the same as the root. `what` is said where they differ, such as "the data"; `own`,
    /// which tells the same from others, is only asked for where there are others.
    ///
    /// # Errors
    /// Names the first member that differs, on all of them.
    pub fn agree(&self, what: &str, own: impl FnOnce() -> Vec<u8>) -> Result<()> {
        if self.world == 1 {
            return Ok(());
        }
        let all = self.all_gather(&own())?;
        match (0..).zip(&all).find(|(_, said)| **said != all[0]) {
            None => Ok(()),
            Some((rank, _)) => Err(Error::usage(format!(
                "{what} of {} differ from those of {}: give every member the same",
                self.member(rank),
                self.member(0)
            ))),
        }
    }

    /// Whether each member's `done` is; if not, every member has an error that names the first whose is not.
    ///
    /// # Errors
    /// A member's own error, or that another has one.
    pub fn all_well<T>(&self, done: Result<T>) -> Result<T> {
        let said = done.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let all = match (self.all_gather(said.as_bytes()), &done) {
            (Ok(all), _) => all,
            // What was found first says more than what came of it.
            (Err(_), Err(_)) => return done,
            (Err(broken), Ok(_)) => return Err(broken),
        };
        let failed = (0..).zip(&all).find(|(_, said)| !said.is_empty());
        match (done, failed) {
            (Ok(done), None) => Ok(done),
            (Err(own), _) => Err(own),
            (Ok(_), Some((rank, why))) => {
                let (member, why) = (self.member(rank), String::from_utf8_lossy(why));
                Err(Error::of_group(format!("stopped, because {member} reports: {why}")))
            }
        }
    }

    /// Tells every other member why this one ends early. Nothing is left to be done in the group after it.
    pub fn fail(&self, why: impl fmt::Display) {
        let Some(mut link) = self.link() else { return };
        if self.alarm.is_raised() {
            return;
        }
        let why = format!("{} reports: {why}", link.member(self.rank));
        link.fail(&why);
        self.alarm.raise(why);
    }

    /// The error of a member whose device has waited for others in vain, with the name of the member that has ended, has
    /// failed or is silent; any other error as it is.
    fn explain(&self, error: Error) -> Error {
        match error.fault() {
            Some(Fault::Alarm) => self.failed(),
            // Those that have waited, too, come here.
            Some(Fault::Waited(what)) => match self.waiting(self.limit.min(MEETING)).barrier() {
                Err(blamed) => Error::of_group(format!("{blamed} ({what})")),
                Ok(()) => error,
            },
            _ => error,
        }
    }

    /// An error of this member as it is to be said: where its device has waited for others in vain, with the name of the one
    /// to blame. If it is this member's own, the others are told; best before its device goes, which may have to wait for
    /// theirs.
    #[must_use]
    pub fn report(&self, error: Error) -> Error {
        let error = self.explain(error);
        if !error.is_echo() {
            self.fail(&error);
        }
        error
    }

    /// Ends the group in peace, once all members are here.
    ///
    /// # Errors
    /// Why the group has failed.
    pub fn leave(self) -> Result<()> {
        self.barrier()?;
        if let Some(mut link) = self.link() {
            link.leave();
        }
        Ok(())
    }

    fn link(&self) -> Option<MutexGuard<'_, Box<dyn Link>>> {
        self.link.as_ref().map(|link| link.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The other members: those to be sent to begin with the next one, those to be heard with the one before.
    fn others(&self) -> Vec<(u32, u32)> {
        let round = |by: u32| (self.rank + by) % self.world;
        (1..self.world).map(|by| (round(by), round(self.world - by))).collect()
    }

    /// An exchange of `out` with all others, which fills `into`, by rank; this member's own is left alone.
    fn exchange<'a>(
        &self,
        link: &mut dyn Link,
        others: &[(u32, u32)],
        out: impl Fn(u32) -> &'a [u8],
        into: &mut [impl AsMut<[u8]>],
    ) -> Result<()> {
        let out: Vec<_> = others.iter().map(|&(to, _)| (to, out(to))).collect();
        let mut by_rank: Vec<_> = into.iter_mut().map(|into| Some(into.as_mut())).collect();
        let mut into: Vec<_> =
            others.iter().filter_map(|&(_, from)| Some((from, by_rank[from as usize].take()?))).collect();
        let broken = match link.exchange(&out, &mut into, Instant::now() + self.limit) {
            Ok(()) => return Ok(()),
            Err(broken) => broken,
        };
        let why = match broken {
            Broken::Alarm => self.alarm.why().unwrap_or_default(),
            Broken::Gone(rank) => format!("{} ended without a word", link.member(rank)),
            Broken::Silent(rank) => format!(
                "{} was not heard of for {} seconds, which is the limit",
                link.member(rank),
                self.limit.as_secs_f64()
            ),
            Broken::Other(why) => why,
        };
        if !self.alarm.is_raised() {
            link.fail(&why);
            self.alarm.raise(&why);
        }
        Err(self.failed())
    }

    /// The error of a member that stops because the group has failed.
    fn failed(&self) -> Error {
        Error::of_group(format!("stopped, because {}", self.alarm.why().unwrap_or_else(|| "the group failed".into())))
    }
}

/// Buffers of elements as buffers of bytes.
fn bytes_of<T: Element>(parts: &mut [Vec<T>]) -> Vec<&mut [u8]> {
    parts.iter_mut().map(|part| bytemuck::cast_slice_mut(part)).collect()
}
