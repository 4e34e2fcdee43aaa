//! How members find each other: all come to rank 0, which tells each where the others are.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::{Mutex, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    super::{Alarm, Group, launch::is_loopback},
    Control, LOOK, PARTING, Stop, Tcp, Word, fill, hear, put, say, until, word_of,
};
use crate::error::{Error, Result};

/// The first bytes in each direction. Who sends others is a stranger.
const MAGIC: [u8; 8] = *b"vaecf\r\n\x1a";

/// What members must have in common to understand each other: the number is that of what they say.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (1)");

/// A stranger is listened to for so long, and an address is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Nobody says more to begin with.
const HELLO: usize = 4096;

/// Visitors that are listened to at a time.
const VISITORS: usize = 1024;

/// What a member says to begin with.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Hello {
    version: String,
    world: u32,
    rank: u32,
    /// Where other members reach it.
    port: u16,
    name: String,
    /// This is the connection of a pair, in the group that has this token.
    pair: Option<u64>,
}

impl Hello {
    fn words(&self) -> String {
        words(self.rank, &self.name)
    }

    fn send(&self, stream: &TcpStream, deadline: Instant) -> std::result::Result<(), Stop<()>> {
        put(stream, &[&MAGIC[..], &word_of(self)].concat(), until(deadline))
    }
}

/// Where a member is.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Place {
    /// As rank 0 sees it; none on the host of rank 0.
    address: Option<IpAddr>,
    port: u16,
    name: String,
}

fn words(rank: u32, name: &str) -> String {
    format!("rank {rank} ({name})")
}

/// Meets the other members at rank 0's `meeting`, which is `host:port`, and connects to each. Nobody is waited for longer
/// than `limit`, now or later in the group. Who knows the address and what members say can come: such ports are
/// for networks where everybody is trusted.
///
/// # Errors
/// An address that is none or cannot be reached, members that do not come in time or do not belong together; always with
/// the names of those, on all members that came.
pub fn meet(rank: u32, world: u32, meeting: &str, limit: Duration) -> Result<Group> {
    if rank >= world {
        return Err(Error::usage(format!("rank {rank} is none of {world} members: ranks count from 0")));
    }
    if world == 1 {
        return Ok(Group { limit, ..Group::default() });
    }
    let (host, port) = meeting
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse::<u16>().ok().filter(|&port| port > 0)?)))
        .ok_or_else(|| Error::usage(format!("members cannot meet at \"{meeting}\": say host:port")))?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let own_port = if rank == 0 { port } else { 0 };
    let mut door = Door::open(host, own_port).map_err(|error| {
        let what = match error.kind() {
            ErrorKind::AddrInUse => "it is in use: choose another one by MASTER_PORT".into(),
            _ => error.to_string(),
        };
        Error::failure(format!("rank {rank} cannot listen at port {own_port} for {meeting}: {what}"))
    })?;
    let own = Hello { version: VERSION.into(), world, rank, port: door.port, name: own_name(), pair: None };
    let deadline = Instant::now() + limit;
    let Met { ends, token, places, root } = if rank == 0 {
        gather(&own, meeting, &mut door, limit, deadline)?
    } else {
        let (root, stream) = come(&own, meeting, host, port, limit, deadline)?;
        told(root, stream, limit)?
    };
    let alarm = Alarm::default();
    let members = (0..).zip(&places).map(|(rank, place)| words(rank, &place.name)).collect();
    for (_, stream) in &ends {
        // The watchers sleep until a word comes.
        stream.set_read_timeout(None).map_err(|error| Error::failure(format!("a socket is of no use: {error}")))?;
    }
    let control =
        Control { rank, members, alarm: alarm.clone(), over: AtomicBool::new(false), ends, first: Mutex::default() };
    let mut tcp = Tcp::new(control).map_err(|error| Error::failure(format!("a thread cannot be started: {error}")))?;
    tcp.peers = Pairs { own: Hello { pair: Some(token), ..own }, places, root, tcp: &tcp, limit }.connect(&mut door)?;
    Ok(Group::new(rank, world, limit, alarm, Box::new(tcp)))
}

/// This process in words.
fn own_name() -> String {
    let host = ["/proc/sys/kernel/hostname", "/etc/hostname"].iter().find_map(|file| fs::read_to_string(file).ok());
    let host = host.as_deref().map(str::trim).filter(|host| !host.is_empty() && host.len() < 256);
    let process = std::process::id();
    host.map_or_else(|| format!("process {process}"), |host| format!("{host}, process {process}"))
}

/// What a member knows once all have come.
struct Met {
    /// To rank 0; from there, to all others.
    ends: Vec<(u32, TcpStream)>,
    /// The group's, so that nobody else is taken for a member.
    token: u64,
    /// By rank.
    places: Vec<Place>,
    /// Where rank 0 was found; none there.
    root: Option<SocketAddr>,
}

/// Rank 0 waits for all others, and tells them of each other.
fn gather(own: &Hello, meeting: &str, door: &mut Door, limit: Duration, deadline: Instant) -> Result<Met> {
    let mut come: Vec<Option<(TcpStream, Hello)>> = (0..own.world).map(|_| None).collect();
    let fail = |come: &[Option<(TcpStream, Hello)>], error: Error| {
        let word = Word::Failed(error.to_string());
        come.iter().flatten().for_each(|(stream, _)| say(stream, &word));
        Err(error)
    };
    while come.iter().flatten().count() + 1 < come.len() {
        if let Some((stream, hello)) = door.next() {
            if hello.pair.is_some() {
                continue;
            }
            let before = come.get(hello.rank as usize).and_then(Option::as_ref).map(|(_, hello)| hello);
            if let Err(why) = admitted(own, before, &hello) {
                refuse(&stream, &why);
                return fail(&come, Error::usage(why));
            }
            let _ = put(&stream, &MAGIC, until(Instant::now() + PARTING));
            say(&stream, &Word::Welcome);
            let rank = hello.rank as usize;
            come[rank] = Some((stream, hello));
            continue;
        }
        if let Some((_, gone)) = come.iter().flatten().find(|(stream, _)| has_ended(stream)) {
            let why = format!("{} ended while other members were waited for", gone.words());
            return fail(&come, Error::failure(why));
        }
        if Instant::now() >= deadline {
            let missing = (1..own.world).filter(|&rank| come[rank as usize].is_none());
            let missing: Vec<_> = missing.map(|rank| rank.to_string()).collect();
            let missing = match &missing[..] {
                [one] => format!("rank {one}"),
                [all @ .., last] => format!("ranks {} and {last}", all.join(", ")),
                [] => "nobody".to_owned(),
            };
            let why = format!(
                "of {} members, {missing} did not come to {meeting} (MASTER_ADDR and MASTER_PORT) within {} seconds: \
                 check that all were started, and that no firewall keeps them from {}",
                own.world,
                limit.as_secs_f64(),
                own.words()
            );
            return fail(&come, Error::failure(why));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let token = RandomState::new().build_hasher().finish();
    let place = |member: &Option<(TcpStream, Hello)>| match member {
        None => Place { address: None, port: own.port, name: own.name.clone() },
        Some((stream, hello)) => {
            let address = stream.peer_addr().map(|address| address.ip().to_canonical()).ok();
            let address = address.filter(|address| !address.is_loopback());
            Place { address, port: hello.port, name: hello.name.clone() }
        }
    };
    let places: Vec<_> = come.iter().map(place).collect();
    let word = Word::Table { token, members: places.clone() };
    come.iter().flatten().for_each(|(stream, _)| say(stream, &word));
    let ends = come.into_iter().flatten().map(|(stream, hello)| (hello.rank, stream)).collect();
    Ok(Met { ends, token, places, root: None })
}

/// Whether one who comes is a member.
fn admitted(own: &Hello, before: Option<&Hello>, new: &Hello) -> std::result::Result<(), String> {
    if new.version != own.version {
        return Err(format!(
            "{} is of version {} of vaecf, but {} is of {}: run the same on all hosts",
            new.words(),
            new.version,
            own.words(),
            own.version
        ));
    }
    if new.world != own.world || new.rank >= own.world {
        return Err(format!(
            "{} was started as one of {} members, but {} as one of {}: start all with the same number, \
             or choose another port by MASTER_PORT where these are two runs",
            new.words(),
            new.world,
            own.words(),
            own.world
        ));
    }
    let before = if new.rank == own.rank { Some(own) } else { before };
    before.map_or(Ok(()), |before| {
        Err(format!(
            "{} and {} are the same rank: give each process a rank of its own, \
             or choose another port by MASTER_PORT where these are two runs",
            before.words(),
            new.words()
        ))
    })
}

fn refuse(stream: &TcpStream, why: &str) {
    let _ = put(stream, &MAGIC, until(Instant::now() + PARTING));
    say(stream, &Word::Refused(why.into()));
}

/// Whether the other end of a connection, from which nothing is due, is gone.
fn has_ended(stream: &TcpStream) -> bool {
    let _ = stream.set_nonblocking(true);
    let peeked = stream.peek(&mut [0]);
    let _ = stream.set_nonblocking(false);
    !matches!(peeked, Err(error) if super::is_pause(error.kind()))
}

/// Another member goes to rank 0 until it is let in. Gives the address where rank 0 was found, and the connection.
fn come(
    own: &Hello,
    meeting: &str,
    host: &str,
    port: u16,
    limit: Duration,
    deadline: Instant,
) -> Result<(SocketAddr, TcpStream)> {
    let mut pause = Duration::from_millis(20);
    loop {
        let (addresses, mut last) = match (host, port).to_socket_addrs() {
            Ok(addresses) => (addresses.collect(), String::new()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        for address in addresses {
            match knock(own, address, deadline) {
                Ok(Ok(stream)) => return Ok((address, stream)),
                Ok(Err(why)) => return Err(Error::usage(why)),
                Err(why) => last = format!("{address}: {why}"),
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::failure(format!(
                "rank 0 was not found at {meeting} within {} seconds ({last}): check that it was started, that \
                 MASTER_ADDR and MASTER_PORT name its host and port, and that no firewall is between",
                limit.as_secs_f64()
            )));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Tries to be let in at an address: gives the connection, or why this process is no member there. The error is
/// that there is no rank 0, or not yet.
fn knock(
    own: &Hello,
    address: SocketAddr,
    deadline: Instant,
) -> std::result::Result<std::result::Result<TcpStream, String>, String> {
    let end = deadline.min(Instant::now() + PATIENCE);
    let stream = dial(address, end).map_err(|error| error.to_string())?;
    let silent = |stop: Stop<()>| match stop {
        Stop::Ended => "it ends the connection".to_owned(),
        Stop::Else(()) => "it does not answer".to_owned(),
    };
    own.send(&stream, end).map_err(silent)?;
    let mut magic = [0; 8];
    fill(&stream, &mut magic, until(end)).map_err(silent)?;
    if magic != MAGIC {
        return Err("this is another program".into());
    }
    match hear(&stream, until(end)).map_err(silent)? {
        Word::Welcome => Ok(Ok(stream)),
        Word::Refused(why) => Ok(Err(why)),
        _ => Err("this is another program".into()),
    }
}

fn dial(address: SocketAddr, end: Instant) -> io::Result<TcpStream> {
    let left = end.saturating_duration_since(Instant::now()).max(LOOK);
    let stream = TcpStream::connect_timeout(&address, left)?;
    if stream.local_addr()? == stream.peer_addr()? {
        // Where nobody listens, a port may be given to the very connection that goes to it.
        return Err(ErrorKind::ConnectionRefused.into());
    }
    prepared(stream)
}

/// A socket for small messages that come at once, which never blocks for long.
fn prepared(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    stream.set_write_timeout(Some(LOOK))?;
    Ok(stream)
}

/// What rank 0 tells when all have come.
fn told(root: SocketAddr, stream: TcpStream, limit: Duration) -> Result<Met> {
    // Rank 0 may have begun to wait later than this member, and ends it itself.
    match hear(&stream, until(Instant::now() + limit + PATIENCE)) {
        Ok(Word::Table { token, members: places }) => {
            Ok(Met { ends: vec![(0, stream)], token, places, root: Some(root) })
        }
        Ok(Word::Failed(why)) => Err(Error::of_group(format!("stopped, because {why}"))),
        Err(Stop::Else(())) => Err(Error::failure("rank 0 let this member in, and was not heard of again")),
        _ => Err(Error::failure("stopped, because rank 0 ended without a word while members were waited for")),
    }
}

/// What is needed to connect to all others.
struct Pairs<'a> {
    own: Hello,
    places: Vec<Place>,
    /// Where rank 0 is, for the others.
    root: Option<SocketAddr>,
    tcp: &'a Tcp,
    limit: Duration,
}

impl Pairs<'_> {
    /// Each member goes to those before it, and waits for those after it.
    fn connect(self, door: &mut Door) -> Result<Vec<Option<TcpStream>>> {
        let deadline = Instant::now() + self.limit;
        let mut peers: Vec<Option<TcpStream>> = self.places.iter().map(|_| None).collect();
        let hello = &self.own;
        for before in 0..hello.rank {
            peers[before as usize] = Some(self.reach(before, deadline)?);
        }
        while let Some(missing) = (hello.rank as usize + 1..peers.len()).find(|&rank| peers[rank].is_none()) {
            match door.next() {
                Some((stream, new)) if new.pair == hello.pair => {
                    let place = peers.get_mut(new.rank as usize).filter(|_| new.rank > hello.rank);
                    if let Some(place @ None) = place {
                        *place = Some(stream);
                    }
                }
                Some((stream, new)) if new.pair.is_none() => {
                    let why = format!("the group of {} is complete without {}", hello.words(), new.words());
                    refuse(&stream, &format!("{why}: choose another port by MASTER_PORT where these are two runs"));
                }
                Some(_) => {}
                None => {
                    let missing = &self.tcp.control.members[missing];
                    self.go_on(deadline, || {
                        format!(
                            "{missing} did not connect to {} within {} seconds: check that no firewall is between",
                            hello.words(),
                            self.limit.as_secs_f64()
                        )
                    })?;
                    thread::sleep(Duration::from_millis(2));
                }
            }
        }
        Ok(peers)
    }

    /// A connection to a member before this one.
    fn reach(&self, rank: u32, deadline: Instant) -> Result<TcpStream> {
        let hello = &self.own;
        let place = &self.places[rank as usize];
        let root = self.root.unwrap_or_else(|| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), place.port));
        let address = match place.address {
            Some(address) => SocketAddr::new(address, place.port),
            None => {
                let mut address = root;
                address.set_port(place.port);
                address
            }
        };
        loop {
            let end = deadline.min(Instant::now() + PATIENCE);
            let refused = match dial(address, end) {
                Ok(stream) => match hello.send(&stream, end) {
                    Ok(()) => return Ok(stream),
                    Err(_) => "it ends the connection".to_owned(),
                },
                Err(error) => error.to_string(),
            };
            self.go_on(deadline, || {
                format!(
                    "{} cannot reach {} at {address} ({refused}): check that no firewall is between",
                    hello.words(),
                    self.tcp.control.members[rank as usize]
                )
            })?;
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends for a reason that all are told of.
    fn go_on(&self, deadline: Instant, why: impl Fn() -> String) -> Result<()> {
        let control = &self.tcp.control;
        if !control.alarm.is_raised() && Instant::now() >= deadline {
            let why = why();
            control.failed(control.rank, &why);
            return Err(Error::failure(why));
        }
        match control.alarm.why() {
            None => Ok(()),
            Some(why) => Err(Error::of_group(format!("stopped, because {why}"))),
        }
    }
}

/// Where others come in.
struct Door {
    listeners: Vec<TcpListener>,
    port: u16,
    visitors: Vec<Visitor>,
}

/// One who has not said yet who it is.
struct Visitor {
    stream: TcpStream,
    said: Vec<u8>,
    since: Instant,
}

impl Door {
    /// Listens where the members of a meeting at `host` come to: at all addresses, unless all are on one host.
    fn open(host: &str, port: u16) -> io::Result<Self> {
        let addresses: &[IpAddr] = match host.parse() {
            Ok(address) if is_loopback(host) => &[address],
            _ if is_loopback(host) => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
            // Most systems take the first for both, and then refuse the second.
            _ => &[IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED)],
        };
        let mut door = Self { listeners: Vec::new(), port, visitors: Vec::new() };
        let mut refused = None;
        for &address in addresses {
            match TcpListener::bind((address, door.port)) {
                Ok(listener) => {
                    listener.set_nonblocking(true)?;
                    door.port = listener.local_addr()?.port();
                    door.listeners.push(listener);
                }
                Err(error) => refused = Some(error),
            }
        }
        refused.filter(|_| door.listeners.is_empty()).map_or(Ok(door), Err)
    }
    /// The next who has said hello. Waits for nobody.
    fn next(&mut self) -> Option<(TcpStream, Hello)> {
        for listener in &self.listeners {
            for (stream, _) in std::iter::from_fn(|| listener.accept().ok()).take(64) {
                if stream.set_nonblocking(true).is_ok() {
                    self.visitors.push(Visitor { stream, said: Vec::new(), since: Instant::now() });
                }
            }
        }
        // Those who have stood there longest have least to say.
        self.visitors.drain(..self.visitors.len().saturating_sub(VISITORS));
        let mut at = 0;
        while let Some(visitor) = self.visitors.get_mut(at) {
            match visitor.listen() {
                Ok(None) => at += 1,
                Ok(Some(hello)) => match prepared(self.visitors.remove(at).stream) {
                    Ok(stream) => return Some((stream, hello)),
                    Err(_) => continue,
                },
                Err(()) => drop(self.visitors.remove(at)),
            }
        }
        None
    }
}

impl Visitor {
    /// What has been said so far, if that is all. The error is that this is a stranger.
    fn listen(&mut self) -> std::result::Result<Option<Hello>, ()> {
        loop {
            let head = MAGIC.len() + 4;
            let magic = self.said.len().min(MAGIC.len());
            if self.said[..magic] != MAGIC[..magic] {
                return Err(());
            }
            let due = match self.said.get(MAGIC.len()..head) {
                None => head,
                Some(len) => head + u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize,
            };
            if due > HELLO {
                return Err(());
            }
            if due > head && self.said.len() == due {
                return serde_json::from_slice(&self.said[head..]).map(Some).map_err(|_| ());
            }
            // No byte more than is due: what follows is for others to read.
            let mut more = [0; HELLO];
            match self.stream.read(&mut more[..due - self.said.len()]) {
                Ok(0) => return Err(()),
                Ok(count) => self.said.extend_from_slice(&more[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return if self.since.elapsed() < PATIENCE { Ok(None) } else { Err(()) };
                }
                Err(_) => return Err(()),
            }
        }
    }
}
