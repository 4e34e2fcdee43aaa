//! Members on TCP: they have what members on threads have, and whatever happens to one ends all others in time, with
//! a sentence that names it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use vaecf_core::{
    Kind, Result,
    group::{Group, meet, threads},
};

/// Longer than any test here waits for anything that comes.
const LIMIT: Duration = Duration::from_secs(60);

/// More than it takes to hear of what has ended.
const SOON: Duration = Duration::from_secs(10);

/// A place on this host where nobody listens.
fn place() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Runs the parts of these ranks, each on a thread.
fn each<R: Send>(ranks: &[u32], part: impl Fn(u32) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let part = &part;
        let running: Vec<_> = ranks.iter().map(|&rank| scope.spawn(move || part(rank))).collect();
        running.into_iter().map(|thread| thread.join().expect("a part that ends")).collect()
    })
}

fn met(rank: u32, world: u32, place: &str, limit: Duration) -> Group {
    meet(rank, world, place, limit).unwrap_or_else(|error| panic!("rank {rank}: {error}"))
}

/// The sentence of what failed, which is an error.
fn sentence<T>(done: Result<T>) -> String {
    done.err().expect("a failure").to_string()
}

fn says(sentence: &str, words: &[&str]) {
    for word in words {
        assert!(sentence.contains(word), "no {word:?} in: {sentence}");
    }
}

fn numbers(rank: u32, count: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + rank as usize * 104_729) % 10_007) as f32 / 17.0 - 300.0).collect()
}

/// All that a member has after one of everything, in bytes. It leaves.
fn everything(group: Group, counts: &[usize]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for &count in counts {
        let mut values = numbers(group.rank(), count);
        group.sum(&mut values).unwrap();
        all.push(bytemuck::cast_slice(&values).to_vec());
        let mut values: Vec<f64> =
            numbers(group.rank(), count).iter().map(|&value| f64::from(value).abs().sqrt()).collect();
        group.sum(&mut values).unwrap();
        all.push(bytemuck::cast_slice(&values).to_vec());
        let own = vec![group.rank() as u8; count * (group.rank() as usize + 1) % 50_000];
        all.extend(group.all_gather(&own).unwrap());
        all.push(group.broadcast(&own).unwrap());
        group.barrier().unwrap();
    }
    group.leave().unwrap();
    all
}

fn same_as_threads(world: u32, counts: &[usize]) {
    let place = place();
    let ranks: Vec<u32> = (0..world).collect();
    let got = each(&ranks, |rank| everything(met(rank, world, &place, LIMIT), counts));
    let expected: Vec<_> = thread::scope(|scope| {
        let members: Vec<_> =
            threads(world, LIMIT).into_iter().map(|group| scope.spawn(|| everything(group, counts))).collect();
        members.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(got == expected, "{world} members, {counts:?} numbers");
}

#[test]
fn large_sums_are_those_of_threads() {
    for world in 2..=4 {
        same_as_threads(world, &[3_000_001, 1, 0, 70_000]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn sums_are_those_of_threads(
        world in 1_u32..=5,
        counts in prop::collection::vec(prop_oneof![0_usize..20, 2000_usize..2100, 0_usize..100_000], 1..5),
    ) {
        same_as_threads(world, &counts);
    }
}

#[test]
fn members_may_come_late() {
    let place = place();
    let worlds = each(&[0, 1, 2], |rank| {
        // Rank 0 is not the first.
        thread::sleep(Duration::from_millis([600, 0, 1200][rank as usize]));
        let group = met(rank, 3, &place, LIMIT);
        let mut sum = [f64::from(rank)];
        group.sum(&mut sum).unwrap();
        let name = group.member(2);
        group.leave().unwrap();
        (sum, name)
    });
    for (sum, name) in worlds {
        assert_eq!(sum, [3.0]);
        let process = format!("process {})", std::process::id());
        says(&name, &["rank 2 (", &process]);
    }
}

#[test]
fn who_does_not_come_is_named() {
    let place = place();
    let limit = Duration::from_millis(700);
    let start = Instant::now();
    let errors = each(&[0, 2], |rank| meet(rank, 4, &place, limit).map(drop).unwrap_err());
    assert!(start.elapsed() < SOON);
    for error in &errors {
        says(&error.to_string(), &["of 4 members, ranks 1 and 3 did not come to", &place, "0.7 seconds", "firewall"]);
    }
    assert_eq!([errors[0].is_echo(), errors[1].is_echo()], [false, true]);
    assert_eq!(errors[0].kind(), Kind::Failure);
}

#[test]
fn without_rank_0_nobody_is_met() {
    let limit = Duration::from_millis(500);
    for place in [place(), place().replace("127.0.0.1", "localhost"), "no-such-host.invalid:29500".into()] {
        let why = sentence(meet(1, 2, &place, limit));
        says(&why, &["rank 0 was not found at", &place, "0.5 seconds", "MASTER_ADDR", "firewall"]);
    }
}

#[test]
fn what_is_no_place_is_refused() {
    for place in ["", "host", "host:", "host:0", "host:70000", "host:x"] {
        let error = meet(0, 2, place, LIMIT).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        says(&error.to_string(), &["host:port"]);
    }
    assert_eq!(meet(2, 2, &place(), LIMIT).unwrap_err().kind(), Kind::Usage);
    // One member needs no place at all.
    assert_eq!(meet(0, 1, "", LIMIT).unwrap().world(), 1);
}

#[test]
fn a_port_in_use_is_refused() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = other.local_addr().unwrap().to_string();
    says(&sentence(meet(0, 2, &place, LIMIT)), &["is in use", "MASTER_PORT"]);
    thread::spawn(move || {
        for stream in other.incoming() {
            let _ = stream.unwrap().write_all(b"SSH-2.0-something\r\n");
        }
    });
    says(&sentence(meet(1, 2, &place, Duration::from_millis(500))), &["another program", &place]);
}

/// Two come who do not go together with rank 0 and another.
fn do_not_go_together(second: impl Fn(&str) -> Result<Group> + Sync, words: &[&str]) {
    let place = place();
    let sentences = each(&[0, 1, 2], |rank| {
        // Rank 0 and a good member are there when the other comes.
        thread::sleep(Duration::from_millis(300 * u64::from(rank)));
        let start = Instant::now();
        let why = sentence(if rank == 2 { second(&place) } else { meet(rank, 3, &place, LIMIT) });
        assert!(start.elapsed() < SOON);
        why
    });
    for sentence in sentences {
        says(&sentence, words);
    }
}

#[test]
fn the_same_rank_twice_is_refused() {
    do_not_go_together(|place| meet(1, 3, place, LIMIT), &["rank 1 (", "the same rank"]);
}

#[test]
fn another_world_is_refused() {
    do_not_go_together(|place| meet(2, 4, place, LIMIT), &["rank 2 (", "one of 4 members", "rank 0 (", "one of 3"]);
    do_not_go_together(|place| meet(3, 4, place, LIMIT), &["rank 3 (", "one of 4 members"]);
}

/// The first bytes of members.
const MAGIC: &[u8] = b"vaecf\r\n\x1a";

/// What a program that is none of this version says, and what it hears.
fn raw(place: &str, hello: &str) -> String {
    let mut stream = TcpStream::connect(place).unwrap();
    stream.write_all(&[MAGIC, &(hello.len() as u32).to_le_bytes(), hello.as_bytes()].concat()).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert!(heard.starts_with(MAGIC), "{heard:?}");
    String::from_utf8(heard[MAGIC.len() + 4..].to_vec()).unwrap()
}

#[test]
fn another_version_is_refused() {
    let place = place();
    let sentences = each(&[0, 1], |rank| {
        if rank == 0 {
            return sentence(meet(0, 2, &place, LIMIT));
        }
        thread::sleep(Duration::from_millis(300));
        raw(&place, r#"{"version": "99.1", "new": [1], "rank": 1, "world": 2, "name": "host, process 7"}"#)
    });
    for sentence in sentences {
        says(&sentence, &["rank 1 (host, process 7) is of version 99.1", "rank 0 ("]);
    }
}

#[test]
fn strangers_do_no_harm() {
    let place = place();
    let huge = [MAGIC, &[0xff; 64]].concat();
    let no_json = [MAGIC, &4_u32.to_le_bytes(), b"\xff\0{}"].concat();
    let stray = r#"{"version": "0", "rank": 1, "world": 2, "pair": 7}"#;
    let stray = [MAGIC, &(stray.len() as u32).to_le_bytes(), stray.as_bytes()].concat();
    let noise: [&[u8]; 8] = [b"", b"v", b"GET / HTTP/1.1\r\n\r\n", &[0; 9000], MAGIC, &huge, &no_json, &stray];
    let done = each(&[0, 1, 2, 3], |rank| {
        if rank == 3 {
            thread::sleep(Duration::from_millis(200));
            // They stay until all is over.
            let mut strangers = Vec::new();
            for _ in 0..10 {
                for bytes in noise {
                    let mut stream = TcpStream::connect(&place).unwrap();
                    // It may have been shown out by now.
                    let _ = stream.write_all(bytes);
                    strangers.push(stream);
                }
            }
            thread::sleep(Duration::from_millis(1500));
            return 6.0;
        }
        thread::sleep(Duration::from_millis(500 * u64::from(rank)));
        let group = met(rank, 3, &place, LIMIT);
        let mut sum = [f64::from(rank) + 1.0];
        group.sum(&mut sum).unwrap();
        group.leave().unwrap();
        sum[0]
    });
    assert_eq!(done, [6.0; 4]);
}

#[test]
fn a_failure_is_everybodys() {
    for failing in 0..3 {
        let place = place();
        let errors = each(&[0, 1, 2], |rank| {
            let group = met(rank, 3, &place, LIMIT);
            group.barrier().unwrap();
            if rank == failing {
                group.fail("the disk is full");
            }
            let start = Instant::now();
            let error = group.sum(&mut [0_f32; 100_000]).unwrap_err();
            assert!(start.elapsed() < SOON);
            // Nor does anything go on afterwards.
            assert!(group.barrier().is_err());
            error
        });
        for error in errors {
            says(&error.to_string(), &[&format!("rank {failing} ("), "reports: the disk is full"]);
        }
    }
}

#[test]
fn one_that_ends_in_the_middle_is_named() {
    for ending in 0..3 {
        let place = place();
        let errors = each(&[0, 1, 2], |rank| {
            let group = met(rank, 3, &place, LIMIT);
            if rank == ending {
                thread::sleep(Duration::from_millis(300));
                return None;
            }
            let start = Instant::now();
            // More than the connections take by themselves.
            let error = group.all_gather(&vec![7; 40_000_000]).unwrap_err();
            assert!(start.elapsed() < SOON);
            Some(error.to_string())
        });
        for error in errors.into_iter().flatten() {
            says(&error, &[&format!("rank {ending} ("), "ended without a word"]);
        }
    }
}

#[test]
fn those_who_do_not_wait_hear_of_an_end() {
    for ending in 0..3 {
        let place = place();
        each(&[0, 1, 2], |rank| {
            let group = met(rank, 3, &place, LIMIT);
            let start = Instant::now();
            // What a device waits for may be ended by this alone.
            while rank != ending && !group.alarm().is_raised() {
                assert!(start.elapsed() < SOON);
                thread::sleep(Duration::from_millis(1));
            }
            if let Some(why) = group.alarm().why() {
                says(&why, &[&format!("rank {ending} ("), "ended without a word"]);
            }
        });
    }
}

#[test]
fn one_that_is_silent_is_named() {
    let place = place();
    let errors = each(&[0, 1, 2], |rank| {
        let group = met(rank, 3, &place, Duration::from_secs(1));
        if rank == 1 {
            while !group.alarm().is_raised() {
                thread::sleep(Duration::from_millis(5));
            }
        }
        sentence(group.all_gather(&vec![7; 40_000_000]))
    });
    for error in errors {
        says(&error, &["rank 1 (", "was not heard of for 1 seconds"]);
    }
}

/// Set for a process that is a member: rank, world, place, milliseconds, and what it does.
const MEMBER: &str = "VAECF_TEST_MEMBER";

/// Nothing, unless another test has started this process as a member.
#[test]
fn a_member() {
    let Ok(member) = std::env::var(MEMBER) else { return };
    let [rank, world, place, limit, part] = member.split(' ').collect::<Vec<_>>()[..] else { panic!("{member}") };
    let group = match meet(rank.parse().unwrap(), world.parse().unwrap(), place, millis(limit.parse().unwrap())) {
        Ok(group) => group,
        Err(error) => {
            eprintln!("stopped: {error}");
            std::process::exit(1);
        }
    };
    eprintln!("met: {group:?}");
    let mut values = vec![1.0_f32; 300_000];
    match part {
        "leave" => {
            group.sum(&mut values).unwrap();
            group.leave().unwrap();
            eprintln!("left: {}", values[0]);
        }
        "fail" => {
            group.sum(&mut values).unwrap();
            group.fail("the disk is full");
            std::process::exit(1);
        }
        _ => loop {
            if let Err(error) = group.sum(&mut values) {
                eprintln!("stopped: {error}");
                std::process::exit(1);
            }
        },
    }
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// A member that is a process.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(mut before: Command, rank: u32, world: u32, place: &str, limit: u64, part: &str) -> Self {
        let mut child = before
            .args(["a_member", "--exact", "--nocapture"])
            .env(MEMBER, format!("{rank} {world} {place} {limit} {part}"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = channel();
        let errors = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || errors.lines().map_while(|line| line.ok()).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn here(rank: u32, world: u32, place: &str, limit: u64, part: &str) -> Self {
        Self::start(Command::new(std::env::current_exe().unwrap()), rank, world, place, limit, part)
    }

    /// The rest of the next line, which begins with a word.
    fn line(&self, word: &str, within: Duration) -> String {
        match self.lines.recv_timeout(within) {
            Ok(line) => line.strip_prefix(word).unwrap_or_else(|| panic!("no {word:?} but: {line}")).to_owned(),
            Err(RecvTimeoutError::Timeout) => panic!("no {word:?} within {within:?}"),
            Err(RecvTimeoutError::Disconnected) => panic!("ended without {word:?}"),
        }
    }

    fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn processes(world: u32, limit: u64, part: impl Fn(u32) -> &'static str) -> Vec<Process> {
    let place = place();
    let members: Vec<_> = (0..world).map(|rank| Process::here(rank, world, &place, limit, part(rank))).collect();
    members.iter().for_each(|member| drop(member.line("met: ", LIMIT)));
    members
}

/// The others stop, in time and for this reason.
fn others_stop(members: &[Process], but: u32, within: Duration, words: &[&str]) {
    let end = Instant::now() + within;
    for (rank, member) in (0..).zip(members).filter(|(rank, _)| *rank != but) {
        let why = member.line("stopped: ", end.saturating_duration_since(Instant::now()));
        assert!(why.contains(&format!("rank {but} (")), "rank {rank} after the end of {but}: {why}");
        says(&why, words);
    }
}

#[test]
fn processes_leave_in_peace() {
    for member in &mut processes(4, 60_000, |_| "leave") {
        assert_eq!(member.line("left: ", LIMIT), "4");
        assert!(member.child.wait().unwrap().success());
    }
}

#[test]
fn a_process_that_is_killed_ends_all() {
    for killed in 0..3 {
        let members = processes(3, 60_000, |_| "work");
        thread::sleep(millis(200));
        members[killed as usize].signal("-KILL");
        others_stop(&members, killed, SOON, &["ended without a word"]);
    }
}

#[test]
fn a_process_that_is_stopped_ends_all() {
    for stopped in 0..3 {
        let members = processes(3, 2000, |_| "work");
        thread::sleep(millis(200));
        members[stopped as usize].signal("-STOP");
        others_stop(&members, stopped, millis(2000) + SOON, &[]);
    }
}

#[test]
fn the_reason_of_a_process_is_heard_though_it_ends_at_once() {
    for failing in 0..3 {
        let members = processes(3, 60_000, |rank| if rank == failing { "fail" } else { "work" });
        others_stop(&members, failing, SOON, &["reports: the disk is full"]);
    }
}

#[test]
fn one_killed_while_others_are_waited_for_ends_all() {
    let place = place();
    let members: Vec<_> = (0..2).map(|rank| Process::here(rank, 3, &place, 60_000, "work")).collect();
    thread::sleep(millis(1500));
    members[1].signal("-KILL");
    says(&members[0].line("stopped: ", SOON), &["rank 1 (", "ended while other members were waited for"]);
    let members: Vec<_> = (0..2).map(|rank| Process::here(rank, 3, &place, 60_000, "work")).collect();
    thread::sleep(millis(1500));
    members[0].signal("-KILL");
    says(&members[1].line("stopped: ", SOON), &["rank 0 ended without a word while members were waited for"]);
}

/// Hosts of a network of their own, where the system allows that.
#[cfg(target_os = "linux")]
mod hosts {
    use super::*;

    const INSIDE: &str = "VAECF_TEST_HOSTS";

    /// A host that is a network namespace, held by a process that sleeps.
    struct Host(Child);

    impl Drop for Host {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn ip(command: &str) -> std::result::Result<(), String> {
        let done = Command::new("ip").args(command.split(' ')).output().map_err(|error| format!("no ip: {error}"))?;
        let why = || format!("ip {command}: {}", String::from_utf8_lossy(&done.stderr).trim());
        done.status.success().then_some(()).ok_or_else(why)
    }

    impl Host {
        fn new(number: u32) -> std::result::Result<Self, String> {
            let mut asleep = Command::new("unshare");
            asleep.args(["-n", "sh", "-c", "echo; exec sleep 600"]).stdout(Stdio::piped());
            let mut host = Self(asleep.spawn().map_err(|error| error.to_string())?);
            // It is there once it has said so.
            host.0.stdout.take().unwrap().read_exact(&mut [0]).map_err(|error| error.to_string())?;
            let pid = host.0.id();
            ip(&format!("link add v{number} type veth peer name eth0 netns {pid}"))?;
            ip(&format!("link set v{number} master bridge up"))?;
            for command in [
                "link set lo up".to_owned(),
                format!("addr add 10.77.0.{number}/24 dev eth0"),
                // Addresses that are used at once.
                format!("addr add fd77::{number}/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
            ] {
                let done = host.command("ip").args(command.split(' ')).output().map_err(|error| error.to_string())?;
                if !done.status.success() {
                    return Err(format!("ip {command}: {}", String::from_utf8_lossy(&done.stderr).trim()));
                }
            }
            Ok(host)
        }

        /// A command that runs on this host.
        fn command(&self, program: &str) -> Command {
            let mut command = Command::new("nsenter");
            command.args(["-t", &self.0.id().to_string(), "-n", program]);
            command
        }

        fn member(&self, rank: u32, world: u32, place: &str, limit: u64, part: &str) -> Process {
            let command = self.command(std::env::current_exe().unwrap().to_str().unwrap());
            Process::start(command, rank, world, place, limit, part)
        }
    }

    fn network() -> std::result::Result<Vec<Host>, String> {
        ip("link add bridge type bridge")?;
        ip("link set bridge up")?;
        (1..=3).map(Host::new).collect()
    }

    fn all_leave(members: Vec<Process>) {
        for mut member in members {
            member.line("met: ", LIMIT);
            assert_eq!(member.line("left: ", LIMIT), "4");
            assert!(member.child.wait().unwrap().success());
        }
    }

    /// Runs the test below in a network of its own.
    #[test]
    fn members_on_hosts() {
        if std::env::var_os(INSIDE).is_some() {
            return;
        }
        let mut command = Command::new("unshare");
        command.args(["-r", "-n", "-m"]).arg(std::env::current_exe().unwrap());
        let done = command.args(["hosts::inside", "--exact", "--nocapture"]).env(INSIDE, "1").output();
        match done {
            Err(error) => eprintln!("skipped: unshare: {error}"),
            Ok(done) => {
                let said = String::from_utf8_lossy(&done.stderr);
                eprint!("{said}");
                let allowed = !said.starts_with("unshare:");
                assert!(done.status.success() || !allowed, "{}", String::from_utf8_lossy(&done.stdout));
            }
        }
    }

    #[test]
    fn inside() {
        if std::env::var_os(INSIDE).is_none() {
            return;
        }
        let hosts = match network() {
            Ok(hosts) => hosts,
            Err(why) => return eprintln!("skipped: no hosts of a network here: {why}"),
        };
        // Four members on three hosts, two of them on rank 0's, by addresses of both kinds.
        for root in ["10.77.0.1", "[fd77::1]"] {
            let place = format!("{root}:29500");
            let members: Vec<_> =
                (0..4).map(|rank| hosts[rank.max(1) as usize - 1].member(rank, 4, &place, 30_000, "leave")).collect();
            all_leave(members);
        }
        // Some hosts take their own name for an address that only they have.
        let names = std::env::temp_dir().join(format!("vaecf-hosts-{}", std::process::id()));
        std::fs::write(&names, "127.0.1.1 first\n").unwrap();
        let mounted = Command::new("mount").arg("--bind").arg(&names).arg("/etc/hosts").status();
        if mounted.is_ok_and(|status| status.success()) {
            let place = |rank: u32| if rank < 2 { "first:29500" } else { "10.77.0.1:29500" };
            let members: Vec<_> = (0..4)
                .map(|rank| hosts[rank.max(1) as usize - 1].member(rank, 4, place(rank), 30_000, "leave"))
                .collect();
            all_leave(members);
        } else {
            eprintln!("skipped: no names of hosts here");
        }
        let _ = std::fs::remove_file(names);
        // One is killed; one host is cut off.
        let all = |limit: u64| -> Vec<_> {
            let place = "10.77.0.1:29500";
            let members: Vec<_> =
                (0..3).map(|rank| hosts[rank as usize].member(rank, 3, place, limit, "work")).collect();
            members.iter().for_each(|member| drop(member.line("met: ", LIMIT)));
            thread::sleep(millis(200));
            members
        };
        let members = all(60_000);
        members[2].signal("-KILL");
        others_stop(&members, 2, SOON, &["ended without a word"]);
        drop(members);
        let members = all(2000);
        ip("link set v2 down").unwrap();
        others_stop(&members, 1, SOON, &["was not heard of for 2 seconds"]);
        // The one that is cut off has heard of nobody.
        says(&members[1].line("stopped: ", SOON), &["was not heard of for 2 seconds"]);
        drop(members);
        // A host that is not reached.
        let members = [0, 1, 2].map(|rank| hosts[rank as usize].member(rank, 3, "10.77.0.1:29500", 2000, "work"));
        for rank in [0, 2] {
            let why = members[rank].line("stopped: ", SOON);
            says(&why, &["of 3 members, rank 1 did not come to 10.77.0.1:29500", "firewall"]);
        }
        says(&members[1].line("stopped: ", SOON), &["rank 0 was not found at 10.77.0.1:29500", "firewall"]);
        eprintln!("done: three hosts");
    }
}
