//! Buffers by handle, and the way between them and the host.

use std::{collections::BTreeMap, ops::Range, rc::Rc};

use half::{bf16, f16};
use vaecf_core::{
    backend::{Buf, Fault, Mat, Result, Role, ScaleState},
    math::SingleStep,
};

use crate::{
    ALIGN, Precision,
    driver::{Context, Event, Memory, Pinned, Stream},
};

/// What lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Single precision; of weights the master, beside which there may be a copy in half.
    Single,
    /// Half precision: activations.
    Half,
    Index,
    Step,
    Scale,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Single | Self::Half => "floats",
            Self::Index => "indices",
            Self::Step => "steps",
            Self::Scale => "scales",
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::Single | Self::Index => 4,
            Self::Half => 2,
            Self::Step => size_of::<SingleStep>() as u64,
            Self::Scale => size_of::<ScaleState>() as u64,
        }
    }
}

/// A buffer of the device.
#[derive(Debug)]
pub(crate) struct Buffer {
    pub(crate) kind: Kind,
    pub(crate) len: u64,
    memory: Memory,
    /// Weights in half precision, as operations read them.
    copy: Option<Memory>,
    /// What was sent to it on the other stream, where the main one has not waited for that yet.
    arriving: Option<Rc<Event>>,
    /// When the main stream has made what lies there, where that is known and nothing has touched it since.
    made: Option<Rc<Event>>,
    /// Ranges that are summed over the group on another stream, which the main one has not waited for yet.
    sums: Vec<(Range<u64>, Rc<Event>)>,
}

impl Buffer {
    /// The main stream waits for sums of which a part lies in a range.
    fn meet_sums(&mut self, range: &Range<u64>, stream: &Stream) -> Result {
        let mut met = Ok(());
        self.sums.retain(|(summed, event)| {
            let apart = range.end <= summed.start || summed.end <= range.start;
            if !apart && met.is_ok() {
                met = stream.wait(event);
            }
            apart
        });
        met
    }

    /// The main stream waits for all that other streams do to it.
    fn settle(&mut self, stream: &Stream) -> Result {
        if let Some(event) = self.arriving.take() {
            stream.wait(&event)?;
        }
        self.meet_sums(&ALL, stream)
    }

    /// Address of the master, or of the only form.
    pub(crate) fn master(&self) -> u64 {
        self.memory.at()
    }

    /// Address of numbers that are in single precision.
    pub(crate) fn in_single(&self, buf: Buf) -> Result<u64> {
        match self.kind {
            Kind::Single => Ok(self.memory.at()),
            _ => Err(Fault::Other(format!("handle {} is not in single precision", buf.0))),
        }
    }

    /// Address of what operations read, and whether that is half precision.
    pub(crate) fn read(&self) -> (u64, bool) {
        match &self.copy {
            Some(copy) => (copy.at(), true),
            None => (self.memory.at(), self.kind == Kind::Half),
        }
    }

    pub(crate) fn copy(&self) -> Option<u64> {
        self.copy.as_ref().map(Memory::at)
    }
}

/// All of a buffer.
const ALL: Range<u64> = 0..u64::MAX;

/// Bytes beyond a buffer's end that may be read: kernels read rows in vectors of 16 bytes.
const MARGIN: u64 = 64;

/// Bytes up to which memory that is given back is kept for the next buffer of its size: the driver takes longer to
/// allocate than a small batch to compute.
const SMALL: u64 = 1 << 20;
/// Pieces of a size that are kept.
const KEPT: usize = 16;

/// All buffers. Handles are never used twice.
#[derive(Debug, Default)]
pub(crate) struct Table {
    buffers: BTreeMap<u32, Buffer>,
    last: u32,
    /// Memory to be used again, by its size.
    spare: BTreeMap<u64, Vec<Memory>>,
}

impl Table {
    pub(crate) fn alloc(
        &mut self,
        context: &Rc<Context>,
        stream: &Stream,
        precision: Precision,
        role: Role,
        len: u64,
    ) -> Result<Buf> {
        let kind = match role {
            Role::Act if precision.is_half() => Kind::Half,
            Role::Weight | Role::Grad | Role::Moment | Role::Act | Role::Value => Kind::Single,
            Role::Index => Kind::Index,
            Role::Step => Kind::Step,
            Role::Scale => Kind::Scale,
        };
        let handle = self.last.checked_add(1).ok_or_else(|| Fault::Other("out of buffer handles".into()))?;
        let mut zeroed = |size: u64| -> Result<Memory> {
            let bytes = len.saturating_mul(size).saturating_add(MARGIN);
            let memory = self.room(context, bytes)?;
            stream.fill(memory.at(), 0, bytes)?;
            Ok(memory)
        };
        let memory = zeroed(kind.bytes())?;
        let copy = if role == Role::Weight && precision.is_half() { Some(zeroed(2)?) } else { None };
        self.buffers.insert(handle, Buffer { kind, len, memory, copy, arriving: None, made: None, sums: Vec::new() });
        self.last = handle;
        Ok(Buf(handle))
    }

    /// Memory of at least so many bytes.
    fn room(&mut self, context: &Rc<Context>, bytes: u64) -> Result<Memory> {
        if bytes > SMALL {
            return context.alloc(bytes).or_else(|_| {
                self.spare.clear();
                context.alloc(bytes)
            });
        }
        // Sizes are an eighth apart, so that few are different and little is wasted.
        let bytes = bytes.next_multiple_of((bytes.next_power_of_two() / 8).max(256));
        match self.spare.get_mut(&bytes).and_then(Vec::pop) {
            Some(memory) => Ok(memory),
            None => context.alloc(bytes),
        }
    }

    /// Gives a buffer back. Small memory may be used again at once, by work that is queued after all that used it; for
    /// other memory both queues are waited for, because the driver does so as it happens, but nowhere promises to.
    pub(crate) fn remove(&mut self, buf: Buf, [main, second]: [&Stream; 2]) {
        let Some(mut buffer) = self.buffers.remove(&buf.0) else { return };
        let settled = buffer.settle(main).is_ok();
        let mut last = Vec::new();
        for memory in [Some(buffer.memory), buffer.copy].into_iter().flatten() {
            let spare = self.spare.entry(memory.bytes).or_default();
            let again = settled && memory.bytes <= SMALL && spare.len() < KEPT;
            (if again { spare } else { &mut last }).push(memory);
        }
        if !last.is_empty() {
            let _ = (main.sync(), second.sync());
        }
    }

    fn get(&mut self, buf: Buf, wanted: &'static str) -> Result<&mut Buffer> {
        match self.buffers.get_mut(&buf.0) {
            Some(buffer) if buffer.kind.name() == wanted => Ok(buffer),
            _ => Err(Fault::Other(format!("{} is not a live handle of {wanted}", buf.0))),
        }
    }

    /// A buffer of a kind; the main stream waits for what is still on its way to it.
    pub(crate) fn lend(&mut self, buf: Buf, wanted: &'static str, stream: &Stream) -> Result<&Buffer> {
        self.reach(buf, &ALL, wanted, stream)
    }

    fn reach(&mut self, buf: Buf, range: &Range<u64>, wanted: &'static str, stream: &Stream) -> Result<&Buffer> {
        let buffer = self.get(buf, wanted)?;
        buffer.made = None;
        if let Some(event) = buffer.arriving.take() {
            stream.wait(&event)?;
        }
        buffer.meet_sums(range, stream)?;
        Ok(buffer)
    }

    /// The same, for a range of it.
    pub(crate) fn range(
        &mut self,
        buf: Buf,
        at: u64,
        len: u64,
        wanted: &'static str,
        stream: &Stream,
    ) -> Result<&Buffer> {
        // Rows are written up to where their padding ends.
        let end = at.saturating_add(len).checked_next_multiple_of(ALIGN.into()).unwrap_or(u64::MAX);
        let buffer = self.reach(buf, &(at..end), wanted, stream)?;
        if at.checked_add(len).is_none_or(|end| end > buffer.len) {
            let has = buffer.len;
            let message = format!("{len} {wanted} from {at} on, of the {has} that handle {} has", buf.0);
            return Err(Fault::Other(message));
        }
        Ok(buffer)
    }

    /// A matrix, all of it within its buffer.
    pub(crate) fn mat(&mut self, mat: Mat, stream: &Stream) -> Result<&Buffer> {
        let empty = mat.rows == 0 || mat.cols == 0;
        let len = if empty { 0 } else { u64::from(mat.rows - 1) * u64::from(mat.stride) + u64::from(mat.cols) };
        self.range(mat.buf, mat.offset, len, "floats", stream)
    }

    /// Whether a buffer holds numbers in single precision, with no copy in half beside them.
    pub(crate) fn is_plain(&self, buf: Buf) -> bool {
        self.buffers.get(&buf.0).is_some_and(|buffer| buffer.kind == Kind::Single && buffer.copy.is_none())
    }

    /// Something is on its way to a buffer.
    pub(crate) fn arrives(&mut self, buf: Buf, event: Rc<Event>) {
        if let Some(buffer) = self.buffers.get_mut(&buf.0) {
            buffer.arriving = Some(event);
        }
    }

    /// What lies in a buffer is there once the event is passed.
    pub(crate) fn made(&mut self, buf: Buf, event: Rc<Event>) {
        if let Some(buffer) = self.buffers.get_mut(&buf.0) {
            buffer.made = Some(event);
        }
    }

    /// The event after which all that lies in a buffer is there, whatever else is queued: see `made`.
    pub(crate) fn ready(&self, buf: Buf) -> Option<Rc<Event>> {
        self.buffers.get(&buf.0)?.made.clone()
    }

    /// A range of a buffer is summed on another stream, until the event.
    pub(crate) fn summed(&mut self, buf: Buf, range: Range<u64>, event: Rc<Event>) {
        if let Some(buffer) = self.buffers.get_mut(&buf.0) {
            buffer.sums.push((range, event));
        }
    }

    /// The main stream waits for all sums.
    pub(crate) fn settle_sums(&mut self, stream: &Stream) -> Result {
        self.buffers.values_mut().try_for_each(|buffer| buffer.meet_sums(&ALL, stream))
    }

    /// The main stream waits for what is on its way to any of these buffers; for all where none are named.
    pub(crate) fn settle(&mut self, only: Option<&[Buf]>, stream: &Stream) -> Result {
        let mut wait = |buffer: &mut Buffer| {
            buffer.made = None;
            buffer.settle(stream)
        };
        match only {
            Some(bufs) => bufs.iter().filter_map(|buf| self.buffers.get_mut(&buf.0).map(&mut wait)).collect(),
            None => self.buffers.values_mut().try_for_each(wait),
        }
    }
}

// ---- between host and device ----

/// Bytes that are converted and sent at once.
const PIECE: usize = 64 << 20;
/// Pieces that may be under way: together a whole chunk of streamed data.
const PIECES: usize = 5;

/// Pinned memory that uploads and downloads go through, each piece with the mark after its last use.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    pieces: Vec<(Pinned, Rc<Event>)>,
}

impl Staging {
    /// Room for `bytes`, at most [`PIECE`]: one that is free, a new one, or the one used longest ago.
    fn take(&mut self, context: &Rc<Context>, bytes: usize) -> Result<(Pinned, Rc<Event>)> {
        let mut fitting = None;
        for (i, (pinned, event)) in self.pieces.iter().enumerate() {
            if pinned.len() >= bytes && event.passed()? {
                fitting = Some(i);
                break;
            }
        }
        if let Some(i) = fitting {
            return Ok(self.pieces.remove(i));
        }
        if self.pieces.len() >= PIECES {
            let oldest = self.pieces.remove(0);
            oldest.1.sync()?;
            if oldest.0.len() >= bytes {
                return Ok(oldest);
            }
        }
        let bytes = bytes.next_power_of_two().clamp(1 << 16, PIECE);
        Ok((context.alloc_pinned(bytes)?, Rc::new(context.event(false)?)))
    }

    /// Sends `count` elements of `size` bytes to `at`, which `convert(from, bytes)` writes from element `from` on.
    /// Returns the mark after the last piece.
    pub(crate) fn send(
        &mut self,
        context: &Rc<Context>,
        stream: &Stream,
        at: u64,
        count: usize,
        size: usize,
        convert: impl Fn(usize, &mut [u8]),
    ) -> Result<Option<Rc<Event>>> {
        let (each, mut last) = (PIECE / size, None);
        for from in (0..count).step_by(each) {
            let bytes = each.min(count - from) * size;
            let to = at + (from * size) as u64;
            if bytes <= crate::driver::FEW {
                let mut few = vec![0; bytes];
                convert(from, &mut few);
                stream.send_few(&few, to)?;
                last = None;
                continue;
            }
            let (mut pinned, event) = self.take(context, bytes)?;
            convert(from, &mut pinned.bytes()[..bytes]);
            stream.send(&pinned, to, bytes)?;
            stream.record(&event)?;
            last = Some(Rc::clone(&event));
            self.pieces.push((pinned, event));
        }
        Ok(last)
    }

    /// Fetches `count` elements of `size` bytes from `at`, which `convert(from, bytes)` is shown. Waits.
    pub(crate) fn fetch(
        &mut self,
        context: &Rc<Context>,
        stream: &Stream,
        at: u64,
        count: usize,
        size: usize,
        mut convert: impl FnMut(usize, &[u8]),
    ) -> Result {
        let each = PIECE / size;
        for from in (0..count).step_by(each) {
            let bytes = each.min(count - from) * size;
            let (mut pinned, event) = self.take(context, bytes)?;
            stream.fetch(at + (from * size) as u64, &mut pinned, bytes)?;
            stream.record(&event)?;
            event.sync()?;
            convert(from, &pinned.bytes()[..bytes]);
            self.pieces.push((pinned, event));
        }
        Ok(())
    }
}

/// Numbers of 16 bits, as a precision has them.
pub(crate) fn narrow(precision: Precision, x: f64) -> [u8; 2] {
    match precision {
        Precision::Bf16 => bf16::from_f64(x).to_le_bytes(),
        _ => f16::from_f64(x).to_le_bytes(),
    }
}

pub(crate) fn widen(precision: Precision, bytes: [u8; 2]) -> f32 {
    match precision {
        Precision::Bf16 => bf16::from_le_bytes(bytes).to_f32(),
        _ => f16::from_le_bytes(bytes).to_f32(),
    }
}
