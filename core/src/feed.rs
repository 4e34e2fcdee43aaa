//! Where the training data lie during a run: on the device as a whole, or passing through it in chunks.
//!
//! Both give the same bits. A chunk is the rows of consecutive batches of the epoch's order, as a matrix over all users
//! in which the others have no events: every user keeps its number, and with it its noise. While the device computes
//! on one chunk the next is uploaded to another set of buffers.
//!
//! Batches and their positions are those of the whole group. Each member takes its share of every batch, which may be
//! nothing, and a chunk of its data holds its shares only.

use crate::{
    backend::{Info, Rows},
    config::TrainConfig,
    device::{Device, DeviceMatrix, UserList},
    error::{Error, Result},
    group::share,
    matrix::Matrix,
    random::{self, stream},
};

/// Where the training data lie during a run. Any of these gives the same bits, so a run may go on under another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// On the device as a whole where they fit, or where its memory is the host's own; else in chunks, as they are
    /// where a list on the device cannot hold all events.
    #[default]
    Auto,
    /// On the device as a whole.
    Resident,
    /// In chunks.
    Streamed {
        /// Bytes of the device that the two sets of buffers may take together.
        bytes: u64,
    },
}

/// Bytes of both sets that are enough, however much there is: what a chunk of this size computes takes far longer than
/// its copy, and a backend can hold all of it in pinned memory, so that the host need not wait for the copy.
const ENOUGH: u64 = 512 << 20;

/// The same for a matrix over so many users, whose row starts are to be the smaller part of a chunk.
pub(crate) fn enough(users: u32) -> u64 {
    ENOUGH.max(8 * 4 * (u64::from(users) + 1))
}

/// The size of a matrix over all users of the training part, by the number of its events.
#[derive(Clone, Copy, Debug)]
struct Size {
    starts: u64,
    event: u64,
}

impl Size {
    fn new(train: &Matrix, info: &Info) -> Self {
        let value = info.master.bytes();
        let event = 4 + if train.values().is_some() { value } else { 0 };
        Self { starts: 4 * (u64::from(train.users()) + 1), event }
    }

    fn bytes(self, events: u64) -> u64 {
        self.starts + events * self.event
    }

    /// Events for which there is room in one of two sets. Row starts count no further than 32 bits.
    fn events(self, both: u64) -> u64 {
        ((both / 2).saturating_sub(self.starts) / self.event).min(u32::MAX.into())
    }
}

/// Bytes of the training data on the device, and whether they are streamed. `longest` is [`Device::longest_list`];
/// `left` is what all else leaves of the device's memory, where that is known.
pub(crate) fn place(
    placement: Placement,
    info: &Info,
    longest: u64,
    train: &Matrix,
    batch: u32,
    left: Option<u64>,
) -> Result<(u64, bool)> {
    let size = Size::new(train, info);
    let whole = size.bytes(train.events());
    // A part is left to what the device needs for itself.
    let left = left.map(|left| if info.host_memory { left } else { left - left / 8 });
    let fits = || train.events() <= u32::MAX.into() && left.is_none_or(|left| whole <= left);
    let most = most_events(train, batch);
    if most > longest {
        return Err(Error::usage(format!(
            "the {batch} users with the most events have {most}, and one list on {} holds {longest}; use a smaller batch",
            info.device
        )));
    }
    let least = 2 * size.bytes(most);
    let listed = train.events() <= longest;
    let both = match placement {
        Placement::Resident if listed => return Ok((whole, false)),
        Placement::Resident => {
            return Err(Error::usage(format!(
                "the training data have {} events, and one list on {} holds {longest}: they cannot lie there as a whole; \
                 let them pass through it in chunks (--data-memory auto)",
                train.events(),
                info.device
            )));
        }
        Placement::Auto if listed && (info.host_memory || fits() || whole <= least) => return Ok((whole, false)),
        Placement::Streamed { bytes } => bytes,
        Placement::Auto => left.unwrap_or(u64::MAX).min(enough(train.users())).max(least),
    };
    let room = size.events(both).min(longest);
    if room < most {
        return Err(Error::usage(format!(
            "the data cannot pass through {both} bytes of the device: the {batch} users with the most events have {most}, \
             and two sets of these take {least} bytes; allow as many, or use a smaller batch"
        )));
    }
    Ok((2 * size.bytes(room.min(train.events())), true))
}

/// Events of the largest batch that an order may bring.
fn most_events(train: &Matrix, batch: u32) -> u64 {
    let mut events: Vec<u64> = train.indptr().windows(2).map(|w| w[1] - w[0]).collect();
    let batch = (batch as usize).min(events.len());
    if batch < events.len() {
        events.select_nth_unstable_by(batch, |a, b| b.cmp(a));
    }
    events[..batch].iter().sum()
}

/// The rows of each batch in turn. Everything is allocated at the start.
pub(crate) struct Feed {
    seed: u64,
    users: u32,
    /// Which member's shares these are, of how many.
    part: (u32, u32),
    /// Each epoch's order of users, in turns in one of two halves.
    order: UserList,
    /// The epochs whose orders lie there.
    ordered: [Option<u32>; 2],
    data: Data,
}

enum Data {
    Resident(Box<DeviceMatrix>),
    Streamed(Box<Stream>),
}

/// Data on their way through the device.
struct Stream {
    train: Matrix,
    /// Users of a batch of the whole group, of which this member has a share.
    batch: u32,
    part: (u32, u32),
    /// Events for which there is room in a set.
    room: u64,
    sets: [DeviceMatrix; 2],
    /// What each set holds.
    held: [Option<Chunk>; 2],
    /// The set that is computed on.
    now: usize,
    /// The orders on the host.
    orders: [Vec<u32>; 2],
    /// Where the next chunk is put together.
    starts: Vec<u32>,
    items: Vec<u32>,
    values: Vec<f32>,
}

/// Positions `from..to` of an epoch's order.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    epoch: u32,
    from: u32,
    to: u32,
}

impl Feed {
    /// For batches of `batch` users in the whole group; with the bytes that both sets of buffers take where the data are
    /// streamed.
    pub(crate) fn new(
        device: &Device,
        train: &Matrix,
        config: &TrainConfig,
        batch: u32,
        streamed: Option<u64>,
    ) -> Result<Self> {
        let part = (device.group().rank(), device.group().world());
        let data = match streamed {
            None => Data::Resident(Box::new(device.matrix(train)?)),
            Some(bytes) => {
                train.check()?;
                let room = Size::new(train, device.info()).events(bytes);
                Data::Streamed(Box::new(Stream {
                    train: train.clone(),
                    batch,
                    part,
                    room,
                    sets: [device.matrix_room(train, room)?, device.matrix_room(train, room)?],
                    held: [None; 2],
                    now: 0,
                    orders: [Vec::new(), Vec::new()],
                    starts: Vec::new(),
                    items: Vec::new(),
                    values: Vec::new(),
                }))
            }
        };
        let users = train.users();
        let any = match &data {
            Data::Resident(matrix) => matrix,
            Data::Streamed(stream) => &stream.sets[0],
        };
        let order = device.user_list(2 * users, any)?;
        Ok(Self { seed: config.seed, users, part, order, ordered: [None; 2], data })
    }

    /// This member's share of the batch of `count` users at position `first` of an epoch, and which set of buffers it
    /// lies in; its rows begin where it does in the batch.
    /// Where that begins a chunk, the upload of the next comes before anything that is computed on this one, so that
    /// a device with a second queue has it done in the meantime. `epochs` is where the run ends at the latest.
    pub(crate) fn rows(&mut self, epoch: u32, epochs: u32, first: u32, count: u32) -> Result<(Rows, usize)> {
        self.arrange(epoch)?;
        let begins = match &self.data {
            Data::Resident(_) => false,
            Data::Streamed(stream) => !stream.holds(stream.now, epoch, first),
        };
        if begins {
            self.turn(epoch, epochs, first)?;
        }
        let own = share(count, self.part.0, self.part.1);
        let (begin, len) = (own.start, own.end - own.start);
        Ok(match &self.data {
            Data::Resident(matrix) => (matrix.listed(&self.order, begin, len), 0),
            Data::Streamed(stream) => (stream.sets[stream.now].listed(&self.order, begin, len), stream.now),
        })
    }

    /// The order of an epoch, on the device. Before an epoch begins it lies there already if it was asked for while
    /// the device was busy with the one before.
    pub(crate) fn arrange(&mut self, epoch: u32) -> Result<()> {
        let half = (epoch % 2) as usize;
        if self.ordered[half] != Some(epoch) {
            let order = random::permutation(self.seed, stream::ORDER, epoch, self.users);
            self.order.write(half as u32 * self.users, &order)?;
            self.ordered[half] = Some(epoch);
            if let Data::Streamed(stream) = &mut self.data {
                stream.orders[half] = order;
            }
        }
        Ok(())
    }

    /// Goes over to the set with position `first` of an epoch, and fills the other one with what comes next.
    fn turn(&mut self, epoch: u32, epochs: u32, first: u32) -> Result<()> {
        let Data::Streamed(stream) = &mut self.data else { return Ok(()) };
        stream.now = 1 - stream.now;
        if !stream.holds(stream.now, epoch, first) {
            stream.load(stream.now, epoch, first)?;
        }
        let (other, end) = (1 - stream.now, stream.held[stream.now].map_or(self.users, |chunk| chunk.to));
        if end < self.users {
            return stream.load(other, epoch, end);
        }
        if epoch + 1 < epochs {
            self.arrange(epoch + 1)?;
            if let Data::Streamed(stream) = &mut self.data {
                stream.load(other, epoch + 1, 0)?;
            }
        }
        Ok(())
    }
}

impl Stream {
    fn holds(&self, set: usize, epoch: u32, first: u32) -> bool {
        self.held[set].is_some_and(|held| held.epoch == epoch && (held.from..held.to).contains(&first))
    }

    /// This member's shares of as many batches from position `from` on as there is room for.
    fn load(&mut self, set: usize, epoch: u32, from: u32) -> Result<()> {
        let order = &self.orders[(epoch % 2) as usize];
        let (mut to, mut events, mut users) = (from as usize, 0, Vec::new());
        while to < order.len() {
            let end = (to + self.batch as usize).min(order.len());
            let own = share((end - to) as u32, self.part.0, self.part.1);
            let own = &order[to + own.start as usize..to + own.end as usize];
            let more: u64 = own.iter().map(|&user| self.train.row(user).len() as u64).sum();
            if events + more > self.room {
                break;
            }
            users.extend_from_slice(own);
            (to, events) = (end, events + more);
        }
        users.sort_unstable();
        let mut users = users.into_iter().peekable();
        self.starts.clear();
        self.items.clear();
        self.values.clear();
        for user in 0..self.train.users() {
            self.starts.push(self.items.len() as u32);
            if users.next_if_eq(&user).is_some() {
                self.items.extend_from_slice(self.train.row(user));
                self.values.extend_from_slice(self.train.row_values(user).unwrap_or_default());
            }
        }
        self.starts.push(self.items.len() as u32);
        self.held[set] = Some(Chunk { epoch, from, to: to as u32 });
        self.sets[set].write(&self.starts, &self.items, self.train.values().map(|_| &self.values[..]))
    }
}
