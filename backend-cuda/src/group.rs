//! A member's part in a group of devices: sums beside the work of this device, and waits that end.
//!
//! A sum has a queue of its own and begins when the main one has made its operand; whatever comes to touch that waits
//! for it (`Table`), and nothing else does. In a recording this is part of what is recorded.
//!
//! What waits for other members on the device may wait for ever. So the host never blocks in a group: it asks, and
//! between two questions looks whether there is still hope (`Member::wait`). It also never lets more than a few sums
//! be under way, because the driver itself blocks where its queues are full.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::{Rc, Weak},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use vaecf_core::backend::{Buf, Fault, Invitation, Result, Seat};

use crate::{
    Cuda, Precision, Recorded,
    driver::{Event, Memory, Stream},
    kernels::{Grid, launch},
    nccl::{Communicator, Kind, Nccl, Refused},
};

/// Sums, or replays with sums, that may be under way.
const AHEAD: usize = 8;

/// Questions until the host sleeps between them, and how long.
const EAGER: u32 = 1_000;
const SLEEP: Duration = Duration::from_micros(50);

/// Numbers that are packed at once where sums travel in half precision.
const PIECE: u64 = 1 << 24;
/// Bytes that this takes: those numbers, and room to let them begin where they begin in single precision. They are
/// allocated when the group is joined, so a plan of what is free then does not count them.
const PACKED: u64 = 2 * (PIECE + VECTOR);
/// Numbers of a vector in half precision.
const VECTOR: u64 = 8;
const THREADS: u32 = 256;

/// A place in a group.
#[derive(Debug)]
pub(crate) struct Member {
    /// None once the place was left, in peace or not.
    communicator: RefCell<Option<Communicator>>,
    /// Why it was left otherwise.
    failed: RefCell<Option<Fault>>,
    rank: u32,
    world: u32,
    limit: Duration,
    alarm: &'static AtomicU32,
    /// Marks after sums that were under way when it was last looked, oldest first.
    under_way: RefCell<VecDeque<Rc<Event>>>,
    /// When the last of those that are not under way any more was found to be done.
    progress: Cell<Instant>,
    /// Recordings: the library does not let go of a place that one of them sums in.
    recorded: Rc<RefCell<Vec<Recorded>>>,
    /// Where sums are packed that travel in half precision, and as what.
    packed: Option<(Memory, Kind)>,
    stream: Stream,
}

impl Member {
    /// Waits until something is done, or until there is no hope for it any more.
    pub(crate) fn wait(&self, done: impl Fn() -> Result<bool>) -> Result {
        let (begun, mut asked) = (Instant::now(), 0);
        loop {
            if let Some(fault) = &*self.failed.borrow() {
                return Err(fault.clone());
            }
            if done()? {
                return Ok(());
            }
            if self.sums_under_way()? > 0 {
                self.look(begun, "to make a sum")?;
            }
            pause(&mut asked);
        }
    }

    /// How many there are, now.
    fn sums_under_way(&self) -> Result<usize> {
        let mut under_way = self.under_way.borrow_mut();
        while under_way.front().map(|event| event.passed()).transpose()? == Some(true) {
            under_way.pop_front();
            self.progress.set(Instant::now());
        }
        Ok(under_way.len())
    }

    /// Whether to wait on for others; this place is left where not. `begun` is when the wait began.
    fn look(&self, begun: Instant, what: &str) -> Result {
        let (rank, world, limit) = (self.rank, self.world, self.limit);
        if self.alarm.load(Ordering::Acquire) != 0 {
            return Err(self.fail(Fault::Alarm));
        }
        if let Err(refused) = self.ended() {
            return Err(match (refused.is_remote(), self.refused(refused)) {
                (true, Fault::Other(what)) => self.fail(Fault::Waited(what)),
                (_, fault) => fault,
            });
        }
        if begun.max(self.progress.get()).elapsed() > limit {
            let seconds = limit.as_secs_f64();
            return Err(self.fail(Fault::Waited(format!(
                "rank {rank} has waited {seconds} seconds, which is the limit, for the {world} members of the group \
                 {what}: see whether all of them still run"
            ))));
        }
        Ok(())
    }

    /// Whether the library's last call has ended. A place that was left has none.
    fn ended(&self) -> std::result::Result<bool, Refused> {
        self.communicator.borrow().as_ref().map_or(Ok(true), Communicator::ended)
    }

    /// Makes a call of the library and waits until it has ended: before that there is nothing in the queue.
    fn call(&self, what: &str, call: impl FnOnce(&Communicator) -> std::result::Result<bool, Refused>) -> Result {
        if let Some(fault) = &*self.failed.borrow() {
            return Err(fault.clone());
        }
        let (begun, mut asked) = (Instant::now(), 0);
        let mut ended = match &*self.communicator.borrow() {
            Some(communicator) => call(communicator),
            None => return Err(Fault::Other("this device has left its group".into())),
        };
        loop {
            match ended {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(refused) => return Err(self.refused(refused)),
            }
            self.look(begun, what)?;
            pause(&mut asked);
            ended = self.ended();
        }
    }

    fn refused(&self, refused: Refused) -> Fault {
        let told = self.communicator.borrow().as_ref().map(|communicator| communicator.told(refused));
        self.fail(told.unwrap_or_else(|| Fault::Other("this device has left its group".into())))
    }

    /// Leaves the group, once and for all. Sums under way come to nothing, so that the device works on.
    fn fail(&self, fault: Fault) -> Fault {
        self.forget_recordings();
        if let Some(communicator) = self.communicator.take() {
            communicator.abort();
        }
        self.failed.replace(Some(fault.clone()));
        fault
    }

    /// Leaves the group in peace, after all that was queued.
    fn leave(&self) {
        let done = self.finish().and_then(|()| self.stream.sync());
        self.forget_recordings();
        // Where this fails, the place was given back on the way.
        let left = done.and_then(|()| self.call("to leave it", Communicator::finalize));
        match (self.communicator.take(), left) {
            (Some(communicator), Ok(())) => communicator.destroy(),
            (Some(communicator), Err(_)) => communicator.abort(),
            (None, _) => {}
        }
    }

    fn forget_recordings(&self) {
        for recorded in self.recorded.borrow_mut().iter_mut().filter(|recorded| recorded.uses.sums) {
            recorded.recording = None;
        }
    }

    /// Waits for the sums under way.
    pub(crate) fn finish(&self) -> Result {
        self.wait(|| Ok(self.sums_under_way()? == 0))
    }

    /// Waits until fewer sums are under way than may be.
    fn keep_up(&self) -> Result {
        self.wait(|| Ok(self.sums_under_way()? < AHEAD))
    }
}

/// A moment between two questions: the answer is near in most cases, and a thread of its own in some.
fn pause(asked: &mut u32) {
    *asked += 1;
    if *asked < EAGER { thread::yield_now() } else { thread::sleep(SLEEP) }
}

impl Cuda {
    /// The library, opened the first time.
    fn nccl(&mut self) -> Result<Nccl> {
        match self.nccl {
            Some(nccl) => Ok(nccl),
            None => {
                let nccl = Nccl::open(self.libraries.as_deref(), self.driver.version as u32 / 1000)?;
                Ok(*self.nccl.insert(nccl))
            }
        }
    }

    pub(crate) fn op_invite(&mut self, rank: u32) -> Result<Invitation> {
        let nccl = self.nccl()?;
        let bytes = if rank == 0 { nccl.invitation()? } else { [0; 128] };
        Ok(Invitation { bytes })
    }

    pub(crate) fn op_join(&mut self, seat: Seat) -> Result {
        if self.capturing.is_some() {
            return Err(Fault::Other("a group is not joined within a recording".into()));
        }
        self.leave_group()?;
        let Seat { rank, world, invitation, half, limit, alarm } = seat;
        let packed = match (half, self.precision) {
            (false, _) => None,
            // The gradients are scaled, and one that is too large is not finite, which the update looks for.
            (true, Precision::F16) => Some((self.context.alloc(PACKED)?, Kind::F16)),
            (true, _) => Some((self.context.alloc(PACKED)?, Kind::Bf16)),
        };
        let stream = self.context.stream()?;
        let communicator = self.nccl()?.join(rank, world, invitation.bytes)?;
        let member = Rc::new(Member {
            communicator: RefCell::new(Some(communicator)),
            failed: RefCell::default(),
            rank,
            world,
            limit: Duration::try_from_secs_f64(limit).unwrap_or(Duration::MAX),
            alarm,
            under_way: RefCell::default(),
            progress: Cell::new(Instant::now()),
            recorded: Rc::clone(&self.recorded),
            packed,
            stream,
        });
        member.call("to join it", |_| Ok(false))?;
        self.context.wait_as(&Rc::downgrade(&member));
        self.member = Some(member);
        Ok(())
    }

    /// Leaves the group, if this device has joined one.
    pub(crate) fn leave_group(&mut self) -> Result {
        if let Some(member) = self.member.take() {
            let settled = self.table.settle_sums(&self.main);
            member.leave();
            self.context.wait_as(&Weak::new());
            settled?;
        }
        Ok(())
    }

    fn member(&self) -> Result<Rc<Member>> {
        self.member.clone().ok_or_else(|| Fault::Other("this device has not joined a group".into()))
    }

    pub(crate) fn finish_sums(&self) -> Result {
        self.member.as_ref().map_or(Ok(()), |member| member.finish())
    }

    /// Waits for all work of the group's queue.
    pub(crate) fn sync_group(&self) -> Result {
        self.member.as_ref().map_or(Ok(()), |member| member.stream.sync())
    }

    pub(crate) fn op_all_reduce(&mut self, buf: Buf, at: u64, len: u64) -> Result {
        self.used(buf);
        let first = self.table.range(buf, at, len, "floats", &self.main)?.in_single(buf)? + 4 * at;
        let done = self.beside(|cuda, member| {
            let Some((memory, kind)) = &member.packed else {
                return member.sum(first, len, Kind::F32);
            };
            for piece in (0..len).step_by(PIECE as usize) {
                let (from, len) = (first + 4 * piece, PIECE.min(len - piece));
                // Vectors begin at the same numbers on both sides.
                let inset = from / 4 % VECTOR;
                let (to, head) = (memory.at() + 2 * inset, ((VECTOR - inset) % VECTOR).min(len) as u32);
                let blocks = len.div_ceil(u64::from(THREADS) * VECTOR);
                let blocks = blocks.clamp(1, 8 * u64::from(cuda.context.properties.processors)) as u32;
                let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS, shared: 0 };
                let kernels =
                    if *kind == Kind::F16 { ["pack_f16", "unpack_f16"] } else { ["pack_bf16", "unpack_bf16"] };
                launch!(cuda, on & member.stream, kernels[0], grid, from, to, len, head)?;
                member.sum(to, len, *kind)?;
                launch!(cuda, on & member.stream, kernels[1], grid, to, from, len, head)?;
            }
            Ok(())
        })?;
        self.table.summed(buf, at..at + len, done);
        Ok(())
    }

    pub(crate) fn op_broadcast(&mut self, buf: Buf, len: u64, root: u32) -> Result {
        if self.capturing.is_some() {
            return Err(Fault::Other("a recording holds no broadcast".into()));
        }
        let buffer = self.table.range(buf, 0, len, "floats", &self.main)?;
        let (master, copy) = (buffer.in_single(buf)?, buffer.copy());
        let done = self.beside(|_, member| {
            let spread = |at, len, kind| {
                let stream = member.stream.raw().cast();
                member.call("to pass on what one has", |of| of.broadcast(at, len, kind, root, stream))
            };
            spread(master, len, Kind::F32)?;
            copy.map_or(Ok(()), |copy| spread(copy, 2 * len, Kind::Bytes))
        })?;
        self.table.summed(buf, 0..len, done);
        Ok(())
    }

    /// Queues work of the group, after what is in the main queue and beside what comes there. The mark after it.
    fn beside(&mut self, work: impl FnOnce(&Self, &Member) -> Result) -> Result<Rc<Event>> {
        let member = self.member()?;
        if self.capturing.is_none() {
            member.keep_up()?;
        }
        let (ready, done) = (self.context.event(false)?, Rc::new(self.context.event(false)?));
        self.main.record(&ready)?;
        member.stream.wait(&ready)?;
        work(self, &member)?;
        member.stream.record(&done)?;
        match &mut self.capturing {
            Some(uses) => uses.sums = true,
            None => member.under_way.borrow_mut().push_back(Rc::clone(&done)),
        }
        Ok(done)
    }

    /// Before a recording with sums is queued.
    pub(crate) fn before_recorded_sums(&mut self) -> Result {
        self.member()?.keep_up()?;
        // All sums of a group have one order.
        self.table.settle_sums(&self.main)
    }

    /// After it was.
    pub(crate) fn after_recorded_sums(&self) -> Result {
        let (member, done) = (self.member()?, Rc::new(self.context.event(false)?));
        self.main.record(&done)?;
        member.under_way.borrow_mut().push_back(done);
        Ok(())
    }
}

impl Member {
    fn sum(&self, at: u64, len: u64, kind: Kind) -> Result {
        if len == 0 {
            return Ok(());
        }
        self.call("to make a sum", |of| of.all_reduce(at, len, kind, self.stream.raw().cast()))
    }
}
