//! Members that are processes on any hosts, and TCP between them: a connection for each pair, and beside these one
//! from each member to rank 0, by which everybody learns at once of one that ends.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Alarm, Broken, Link, threads::out_of_step};

mod meet;

pub use meet::meet;

/// After so long, what waits for a socket looks at the alarm.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes to a member that any system takes though nobody reads them yet. More are sent by a thread of their own.
const SMALL: usize = 8 << 10;

/// How long the reason of a member's end may be under way once its connection has ended.
const GRACE: Duration = Duration::from_secs(2);

/// How long a word to a member may take, and how long members take leave.
const PARTING: Duration = Duration::from_secs(5);

/// More than the longest word: a table of members.
const LONGEST: u32 = 1 << 24;

/// A sentence that is passed on has no more characters.
const SENTENCE: usize = 16 << 10;

/// What goes between a member and rank 0 beside the data.
#[derive(Serialize, Deserialize)]
enum Word {
    /// A member was let in.
    Welcome,
    /// A member was not let in, and why.
    Refused(String),
    /// All members are there.
    Table { token: u64, members: Vec<meet::Place> },
    /// Why the group has failed.
    Failed(String),
    /// The sender leaves in peace.
    Bye,
}

/// Why no more was read or written.
enum Stop<E> {
    /// The connection has ended, or what comes is not what a member says.
    Ended,
    /// What was looked at meanwhile.
    Else(E),
}

/// Fills a buffer from a socket, and calls `check` at least as often as the socket's timeout is.
fn fill<E>(mut stream: &TcpStream, mut into: &mut [u8], check: impl Fn() -> Result<(), E>) -> Result<(), Stop<E>> {
    while !into.is_empty() {
        match stream.read(into) {
            Ok(0) => return Err(Stop::Ended),
            Ok(count) => into = &mut into[count..],
            Err(error) if is_pause(error.kind()) => check().map_err(Stop::Else)?,
            Err(_) => return Err(Stop::Ended),
        }
    }
    Ok(())
}

/// Writes bytes to a socket, likewise.
fn put<E>(mut stream: &TcpStream, mut bytes: &[u8], check: impl Fn() -> Result<(), E>) -> Result<(), Stop<E>> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if is_pause(error.kind()) => check().map_err(Stop::Else)?,
            Err(_) => return Err(Stop::Ended),
        }
    }
    Ok(())
}

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// A check that ends what takes too long.
fn until(deadline: Instant) -> impl Fn() -> Result<(), ()> {
    move || if Instant::now() < deadline { Ok(()) } else { Err(()) }
}

/// A word as it is sent: its length, and JSON.
fn word_of(word: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, word).expect("words have no keys but strings, and memory takes all");
    let len = bytes.len() as u32 - 4;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn say(stream: &TcpStream, word: &Word) {
    // One who is gone, or takes nothing for so long, is told of by others.
    let _ = put(stream, &word_of(word), until(Instant::now() + PARTING));
}

fn hear<T: DeserializeOwned, E>(stream: &TcpStream, check: impl Fn() -> Result<(), E>) -> Result<T, Stop<E>> {
    let mut len = [0; 4];
    fill(stream, &mut len, &check)?;
    let len = u32::from_le_bytes(len);
    if len > LONGEST {
        return Err(Stop::Ended);
    }
    let mut word = vec![0; len as usize];
    fill(stream, &mut word, &check)?;
    serde_json::from_slice(&word).map_err(|_| Stop::Ended)
}

/// What a member knows of the others' well-being.
struct Control {
    rank: u32,
    /// In words, by rank.
    members: Vec<String>,
    alarm: Alarm,
    /// This end is over: whatever ends now is no failure.
    over: AtomicBool,
    /// To rank 0; from there, to all others.
    ends: Vec<(u32, TcpStream)>,
    /// Words of a failure go out one after the other, so that the first is everybody's first.
    first: Mutex<()>,
}

impl Control {
    /// The group has failed, says a member: the first to say so is passed on.
    fn failed(&self, from: u32, why: &str) {
        let _first = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        if self.alarm.is_raised() {
            return;
        }
        // The others come first: this process may end as soon as the alarm is raised.
        if from == self.rank || self.rank == 0 {
            let word = Word::Failed(why.chars().take(SENTENCE).collect());
            self.ends.iter().filter(|(rank, _)| *rank != from).for_each(|(_, stream)| say(stream, &word));
        }
        self.alarm.raise(why);
    }

    /// Listens to the member at the other end until that ends.
    fn watch(&self, rank: u32, stream: &TcpStream) {
        match hear(stream, || Ok::<(), ()>(())) {
            Ok(Word::Bye) => {}
            _ if self.over.load(Ordering::Acquire) => {}
            Ok(Word::Failed(why)) => self.failed(rank, &why),
            _ => self.failed(rank, &format!("{} ended without a word", self.members[rank as usize])),
        }
    }
}

/// A member's ends of all connections.
struct Tcp {
    control: Arc<Control>,
    watchers: Vec<JoinHandle<()>>,
    /// By rank; none to itself.
    peers: Vec<Option<TcpStream>>,
}

impl Tcp {
    /// Listens to the other ends of the control from now on.
    fn new(control: Control) -> std::io::Result<Self> {
        let mut tcp = Self { control: Arc::new(control), watchers: Vec::new(), peers: Vec::new() };
        for at in 0..tcp.control.ends.len() {
            let control = Arc::clone(&tcp.control);
            let watch = move || {
                let (rank, stream) = &control.ends[at];
                control.watch(*rank, stream);
            };
            tcp.watchers.push(thread::Builder::new().name("vaecf-group".into()).stack_size(256 << 10).spawn(watch)?);
        }
        Ok(tcp)
    }

    fn peer(&self, rank: u32) -> Result<&TcpStream, Broken> {
        self.peers.get(rank as usize).and_then(Option::as_ref).ok_or(Broken::Gone(rank))
    }

    /// Why an exchange with a member stopped.
    fn broken(&self, rank: u32, stop: Stop<Broken>) -> Broken {
        if let Stop::Else(broken) = stop {
            return broken;
        }
        // Its connection is seen to end before the reason comes by way of rank 0.
        let end = Instant::now() + GRACE;
        while Instant::now() < end {
            if self.control.alarm.is_raised() {
                return Broken::Alarm;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if rank == 0 || self.control.rank == 0 {
            return Broken::Gone(rank);
        }
        Broken::Other(format!("{} has ended, and {} does not say why", self.member(rank), self.member(0)))
    }

    fn send(&self, rank: u32, bytes: &[u8], check: impl Fn() -> Result<(), Broken>) -> Result<(), Broken> {
        let stream = self.peer(rank)?;
        let len = (bytes.len() as u64).to_le_bytes();
        let sent = if bytes.len() <= SMALL {
            // In one packet.
            put(stream, &[&len, bytes].concat(), check)
        } else {
            put(stream, &len, &check).and_then(|()| put(stream, bytes, &check))
        };
        sent.map_err(|stop| self.broken(rank, stop))
    }

    fn receive(&self, rank: u32, into: &mut [u8], check: impl Fn() -> Result<(), Broken>) -> Result<(), Broken> {
        let stream = self.peer(rank)?;
        let mut len = [0; 8];
        fill(stream, &mut len, &check).map_err(|stop| self.broken(rank, stop))?;
        let len = u64::from_le_bytes(len) as usize;
        if len != into.len() {
            return Err(Broken::Other(out_of_step(rank, len, into.len())));
        }
        fill(stream, into, &check).map_err(|stop| self.broken(rank, stop))
    }

    fn send_all(&self, out: &[(u32, &[u8])], check: impl Fn(u32) -> Result<(), Broken>) -> Result<(), Broken> {
        out.iter().try_for_each(|&(rank, bytes)| self.send(rank, bytes, || check(rank)))
    }
}

impl Link for Tcp {
    fn name(&self) -> &'static str {
        "TCP"
    }

    fn member(&self, rank: u32) -> String {
        self.control.members.get(rank as usize).cloned().unwrap_or_else(|| format!("rank {rank}"))
    }

    fn exchange(
        &mut self,
        out: &[(u32, &[u8])],
        into: &mut [(u32, &mut [u8])],
        deadline: Instant,
    ) -> Result<(), Broken> {
        // One side of the exchange has failed: the other need not go on.
        let over = AtomicBool::new(false);
        let check = |rank: u32| {
            if over.load(Ordering::Relaxed) || self.control.alarm.is_raised() {
                return Err(Broken::Alarm);
            }
            if Instant::now() < deadline { Ok(()) } else { Err(Broken::Silent(rank)) }
        };
        if self.control.alarm.is_raised() {
            return Err(Broken::Alarm);
        }
        let ended = |done: Result<(), Broken>| {
            over.fetch_or(done.is_err(), Ordering::Relaxed);
            done
        };
        let mut receive = || {
            ended(into.iter_mut().try_for_each(|(rank, into)| {
                let rank = *rank;
                self.receive(rank, into, || check(rank))
            }))
        };
        if out.iter().all(|(_, bytes)| bytes.len() <= SMALL) {
            self.send_all(out, check)?;
            return receive();
        }
        thread::scope(|scope| {
            let sender = thread::Builder::new()
                .spawn_scoped(scope, || ended(self.send_all(out, check)))
                .map_err(|error| Broken::Other(format!("a thread cannot be started: {error}")))?;
            let received = receive();
            let sent = sender.join().unwrap_or_else(|_| Err(Broken::Other("a thread ended by a bug in vaecf".into())));
            // That one stopped for the other's sake is not the reason.
            match (sent, received) {
                (Err(broken), Ok(()) | Err(Broken::Alarm)) | (_, Err(broken)) => Err(broken),
                (Ok(()), Ok(())) => Ok(()),
            }
        })
    }

    fn fail(&mut self, why: &str) {
        self.control.failed(self.control.rank, why);
    }

    fn leave(&mut self) {
        self.control.over.store(true, Ordering::Release);
        self.control.ends.iter().for_each(|(_, stream)| say(stream, &Word::Bye));
        let end = Instant::now() + PARTING;
        while Instant::now() < end && !self.watchers.iter().all(JoinHandle::is_finished) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        self.control.over.store(true, Ordering::Release);
        let ends = self.control.ends.iter().map(|(_, stream)| stream);
        for stream in ends.chain(self.peers.iter().flatten()) {
            // What was sent still arrives. The watchers see the end, too.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.watchers.drain(..).for_each(|watcher| drop(watcher.join()));
    }
}
