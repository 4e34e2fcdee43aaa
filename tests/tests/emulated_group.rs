//! Groups of emulated devices: training that sums through a stand-in for NCCL, members in two processes, and all that
//! can go wrong between members, which must end in a sentence within the limit.
//!
//! Each check has a child process, because the driver reads its environment once.

mod built;
mod cuda;
mod grouped;

use std::{
    env,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use grouped::{LIMIT, Outcome, config, each, is_the_run_of_one, model, trained};
use libtest_mimic::{Arguments, Failed, Trial};
use vaecf_core::{
    Error, Result,
    backend::{Backend, Buf, Fault, Host, HostMut, Invitation, Role, Seat},
    config::Member,
    device::{Device, Exchange},
    group::{Alarm, Group},
    trainer::Placement,
};
use vaecf_cuda::{Cuda, Precision};
use vaecf_tests::{compare::first_difference, planted};

/// What the child is asked to do, and where its libraries are.
const CHECK: &str = "VAECF_GROUP_CHECK";
const FOLDER: &str = "VAECF_GROUP_FOLDER";
/// A member in a process of its own: its rank.
const RANK: &str = "VAECF_GROUP_RANK";

/// What is wrong in a check, as the stand-ins are told.
const MISSING: &str = "VAECF_EMULATOR_NCCL_MISSING";
const INIT_ERROR: &str = "VAECF_EMULATOR_NCCL_INIT_ERROR";
const STUCK_AFTER: &str = "VAECF_EMULATOR_NCCL_STUCK_AFTER";
const REMOTE_AFTER: &str = "VAECF_EMULATOR_NCCL_REMOTE_AFTER";
const VERSION: &str = "VAECF_EMULATOR_NCCL_VERSION";

/// After so long a member is not waited for any more, where it never comes.
const SHORT: Duration = Duration::from_secs(2);

struct Check {
    name: &'static str,
    /// With how many seeds it is run.
    seeds: u32,
    told: &'static [(&'static str, &'static str)],
    /// A function that the libraries lack.
    lacks: &'static str,
    run: fn(),
}

const fn check(name: &'static str, seeds: u32, told: &'static [(&'static str, &'static str)], run: fn()) -> Check {
    Check { name, seeds, told, lacks: "", run }
}

const CHECKS: [Check; 18] = [
    check("a group of one has the bits of none", 2, &[], a_group_of_one_has_the_bits_of_none),
    check("f32 members compute the run of one", 3, &[], || members_compute_the_run_of_one(Precision::F32, false)),
    check("f16 members compute the run of one", 3, &[], || members_compute_the_run_of_one(Precision::F16, false)),
    check("half sums compute the run of one", 2, &[], || members_compute_the_run_of_one(Precision::F16, true)),
    check("sums travel in half precision", 1, &[], sums_travel_in_half_precision),
    check("half sums in several pieces", 1, &[("VAECF_EMULATOR_WATCH", "0")], half_sums_in_several_pieces),
    check("steps in parts of the data compute the run of one", 2, &[], steps_in_parts_compute_the_run_of_one),
    check("two processes sum and pass on", 2, &[], two_processes),
    check("a member that never comes", 1, &[(MISSING, "1")], a_member_that_never_comes),
    check("an error while joining", 1, &[(INIT_ERROR, "2")], an_error_while_joining),
    check("a sum that never ends", 1, &[(STUCK_AFTER, "9")], || a_run_ends("which is the limit")),
    check("a sum that never ends in a replay", 1, &[(STUCK_AFTER, "24")], || a_run_ends("which is the limit")),
    check("an error of the network", 1, &[(REMOTE_AFTER, "9")], || a_run_ends("remote process exited")),
    check("an error of the network ends a wait", 1, &[(REMOTE_AFTER, "0")], an_error_of_the_network_ends_a_wait),
    check("the alarm ends a wait", 1, &[(STUCK_AFTER, "0")], the_alarm_ends_a_wait),
    check("an old library", 1, &[(VERSION, "2803")], || refused("NCCL is too old: ", "is version 2.8.3; install")),
    Check {
        lacks: "ncclCommInitRankConfig",
        ..check("a library without a function", 1, &[], || {
            refused("NCCL is too old: ", "has no ncclCommInitRankConfig")
        })
    },
    check("no library", 1, &[], no_library),
];

fn main() {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: the emulator is built on Linux only");
        return;
    }
    if let Ok(asked) = env::var(CHECK) {
        let check = CHECKS.iter().find(|check| check.name == asked).expect("a check");
        return (check.run)();
    }
    let trial =
        |check: &'static Check, seed| Trial::test(format!("{}, seed {seed}", check.name), move || child(check, seed));
    static ALL: [Check; CHECKS.len()] = CHECKS;
    let trials = ALL.iter().flat_map(|check| (1..=check.seeds).map(move |seed| trial(check, seed))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn child(check: &Check, seed: u32) -> std::result::Result<(), Failed> {
    let folder = match check.lacks {
        "" => built::emulator().to_owned(),
        lacks => {
            let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("emulator-without-{lacks}"));
            built::emulator_without(&folder, lacks);
            folder
        }
    };
    // What members tell each other goes when all of them have ended.
    let between = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!(
        "nccl-{}-{seed}-{}",
        check.name.replace(' ', "-"),
        std::process::id()
    ));
    std::fs::create_dir_all(&between)?;
    let mut command = Command::new(env::current_exe()?);
    command.env(CHECK, check.name).env(FOLDER, folder).env("VAECF_EMULATOR_SEED", seed.to_string());
    command.envs(cuda::DEVICE).env("VAECF_EMULATOR_NCCL_FOLDER", &between).envs(check.told.iter().copied());
    let output = command.output()?;
    std::fs::remove_dir_all(&between)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

fn folder() -> PathBuf {
    env::var_os(FOLDER).expect("the child is told where its libraries are").into()
}

/// The backend of a member.
fn open(precision: Precision, rank: u32) -> Result<Cuda> {
    cuda::open_device(&folder(), precision, true, rank)
}

/// The device of a member.
fn device(precision: Precision, group: Group, half: bool) -> Result<Device> {
    let backend = open(precision, group.rank())?;
    Device::in_group(Box::new(backend), group, half)
}

/// A run of as many members, each on a device of its own, whose sums the devices make.
fn run(world: u32, precision: Precision, half: bool, placement: Placement) -> Vec<Outcome> {
    let data = planted::tastes(3, 90, 33, 4).unwrap();
    each(world, LIMIT, |group| {
        let device = device(precision, group, half).unwrap();
        assert!(world == 1 || *device.exchange() == Exchange::Devices, "{:?}", device.exchange());
        trained(&device, &model(Member::MultVae), &config(25), &data, placement, None).unwrap()
    })
}

fn members_compute_the_run_of_one(precision: Precision, half: bool) {
    let one = run(1, precision, false, Placement::Auto);
    for world in [2, 3] {
        is_the_run_of_one(&one[0], &run(world, precision, half, Placement::Auto));
    }
}

fn steps_in_parts_compute_the_run_of_one() {
    let one = run(1, Precision::F16, false, Placement::Auto);
    is_the_run_of_one(&one[0], &run(2, Precision::F16, false, Placement::Streamed { bytes: 1 << 13 }));
}

/// Sums of one member are its own, so a run through the library, called and replayed, is the run without.
fn a_group_of_one_has_the_bits_of_none() {
    let data = planted::tastes(3, 90, 33, 4).unwrap();
    for precision in [Precision::F32, Precision::F16] {
        let alone = Device::alone_in_group(Box::new(open(precision, 0).unwrap())).unwrap();
        let through = trained(&alone, &model(Member::MultVae), &config(25), &data, Placement::Auto, None).unwrap();
        let without = run(1, precision, false, Placement::Auto).remove(0);
        assert!(through.state.weights == without.state.weights && through.state.moments == without.state.moments);
        assert_eq!(through.evaluation, without.evaluation);
    }
}

/// A buffer of gradients and what is in it.
fn gradient(backend: &mut dyn Backend, values: &[f64]) -> Buf {
    let buf = backend.alloc(Role::Grad, values.len() as u64).unwrap();
    backend.upload(buf, 0, Host::F64(values)).unwrap();
    buf
}

/// Sums are those of numbers as they travel: of 11 bits and the range of f16, or of 8 bits.
fn sums_travel_in_half_precision() {
    for precision in [Precision::F32, Precision::F16, Precision::Bf16] {
        let untouched = 1.0 + 2.0_f64.powi(-12);
        let own = [1.0 + 2.0_f64.powi(-12), 1.0 + 2.0_f64.powi(-9), 65_536.0, untouched];
        let sums = each(2, LIMIT, |group| {
            let mut backend = open(precision, group.rank()).unwrap();
            join(&mut backend, &group, true).unwrap();
            let buf = gradient(&mut backend, &own);
            let mut got = [0.0; 4];
            backend.all_reduce(buf, 0, 3).unwrap();
            backend.download(buf, 0, HostMut::F64(&mut got)).unwrap();
            group.leave().unwrap();
            got
        });
        let wanted = match precision {
            Precision::F16 => [2.0, 2.0 + 2.0_f64.powi(-8), f64::INFINITY, untouched],
            _ => [2.0, 2.0, 131_072.0, untouched],
        };
        assert_eq!(sums, [wanted; 2], "{precision:?}");
    }
}

/// More numbers than are packed at once, exact in half precision, and other ones in every piece.
fn half_sums_in_several_pieces() {
    let values: Vec<f32> = (0..(1 << 24) + 1001).map(|i| (i % 2039) as f32 - 1000.0).collect();
    each(1, LIMIT, |group| {
        let mut backend = open(Precision::F16, 0).unwrap();
        join(&mut backend, &group, true).unwrap();
        let buf = backend.alloc(Role::Grad, values.len() as u64).unwrap();
        backend.upload(buf, 0, Host::F32(&values)).unwrap();
        backend.all_reduce(buf, 3, values.len() as u64 - 3).unwrap();
        let mut got = vec![0.0; values.len()];
        backend.download(buf, 0, HostMut::F32(&mut got)).unwrap();
        assert!(got == values, "sums of one member are others");
    });
}

/// Joins a group as a device does.
fn join(backend: &mut Cuda, group: &Group, half: bool) -> Result<()> {
    let own = group.all_well(backend.invite(group.rank()).map_err(Error::from))?;
    let bytes = group.broadcast(&own.bytes)?.try_into().expect("as many bytes");
    let (limit, alarm) = (group.limit().as_secs_f64(), group.alarm().flag());
    let seat = Seat { rank: group.rank(), world: group.world(), invitation: Invitation { bytes }, half, limit, alarm };
    Ok(backend.join(seat)?)
}

/// Rank 0 starts the process of rank 1 and tells it the invitation.
fn two_processes() {
    let rank: u32 = env::var(RANK).map_or(0, |rank| rank.parse().expect("a rank"));
    let mut backend = open(Precision::F16, 0).unwrap();
    let own = backend.invite(rank).unwrap();
    let (mut other, mut said) = (None, String::new());
    if rank == 0 {
        let this = env::current_exe().unwrap();
        let mut child = Command::new(this).env(RANK, "1").stdin(Stdio::piped()).spawn().unwrap();
        let mut way = child.stdin.take().expect("a way to the child");
        own.bytes.iter().for_each(|byte| said += &format!("{byte:02x}"));
        writeln!(way, "{said}").unwrap();
        other = Some(child);
    } else {
        BufReader::new(std::io::stdin()).read_line(&mut said).unwrap();
    }
    let byte = |at: usize| u8::from_str_radix(&said[2 * at..2 * at + 2], 16).expect("a byte");
    let invitation = Invitation { bytes: std::array::from_fn(byte) };
    let alarm = Alarm::default().flag();
    backend.join(Seat { rank, world: 2, invitation, half: false, limit: 60.0, alarm }).unwrap();
    for turn in 0..5 {
        let of = |rank: u32| (0..3000).map(|i| f64::from((i * (rank + 2) + turn) % 97)).collect::<Vec<f64>>();
        let (mine, both) = (of(rank), of(0).iter().zip(of(1)).map(|(a, b)| a + b).collect::<Vec<f64>>());
        let buf = gradient(&mut backend, &mine);
        let mut got = vec![0.0; 3000];
        backend.all_reduce(buf, 0, 3000).unwrap();
        backend.download(buf, 0, HostMut::F64(&mut got)).unwrap();
        assert_eq!(first_difference(&got, &both), None, "a sum on rank {rank}");
        backend.upload(buf, 0, Host::F64(&mine)).unwrap();
        backend.broadcast(buf, 3000, 1).unwrap();
        backend.download(buf, 0, HostMut::F64(&mut got)).unwrap();
        assert_eq!(first_difference(&got, &of(1)), None, "what was passed on to rank {rank}");
    }
    backend.sync().unwrap();
    drop(backend);
    assert!(other.is_none_or(|mut other| other.wait().unwrap().success()), "the other process has failed");
}

/// What each of two members comes to, within a time in which nobody waits for ever.
fn ends(limit: Duration, member: impl Fn(Group) -> Result<()> + Sync) -> Vec<String> {
    let begun = Instant::now();
    let said = each(2, limit, |group| {
        let done = member(group.clone());
        if let Err(error) = &done {
            group.fail(error);
        }
        done.map_or_else(|error| error.to_string(), |()| String::new())
    });
    assert!(begun.elapsed() < LIMIT, "{said:?}");
    said
}

fn some_says(said: &[String], words: &[&str]) {
    assert!(said.iter().any(|said| words.iter().all(|word| said.contains(word))), "{said:?}");
    assert!(said.iter().all(|said| !said.is_empty()), "{said:?}");
}

fn a_member_that_never_comes() {
    let said = ends(SHORT, |group| device(Precision::F16, group, false).map(drop));
    // Whoever is first to say so; the other hears of it.
    some_says(&said, &[" has waited 2 seconds, which is the limit, for the 2 members of the group to join it"]);
}

fn an_error_while_joining() {
    let said = ends(SHORT, |group| device(Precision::F16, group, false).map(drop));
    some_says(&said, &["NCCL reports: unhandled system error", ": an error while joining, as it was asked for"]);
}

/// A run in which sums go wrong from one on.
fn a_run_ends(words: &str) {
    let data = planted::tastes(3, 90, 33, 4).unwrap();
    let said = ends(SHORT, |group| {
        let device = device(Precision::F16, group, false)?;
        trained(&device, &model(Member::MultVae), &config(25), &data, Placement::Auto, None).map(drop)
    });
    some_says(&said, &[words]);
}

/// One member waits for a sum, without a limit, and the other fails.
fn the_alarm_ends_a_wait() {
    let said = ends(LIMIT * 100, |group| {
        let mut backend = open(Precision::F16, group.rank())?;
        join(&mut backend, &group, false)?;
        if group.rank() == 1 {
            thread::sleep(Duration::from_millis(500));
            return Err(Error::failure("the disk is full"));
        }
        let buf = gradient(&mut backend, &[1.0; 100]);
        backend.all_reduce(buf, 0, 100)?;
        let waited = backend.sync();
        assert_eq!(waited, Err(Fault::Alarm));
        // And so does all that comes after.
        assert_eq!(backend.download(buf, 0, HostMut::F64(&mut [0.0; 100])), Err(Fault::Alarm));
        assert_eq!(backend.all_reduce(buf, 0, 100), Err(Fault::Alarm));
        Ok(waited?)
    });
    assert_eq!(said, ["stopped, because another member of the group has failed", "the disk is full"]);
}

/// Members wait for a sum, and call nothing that would tell them.
fn an_error_of_the_network_ends_a_wait() {
    let said = ends(LIMIT * 100, |group| {
        let mut backend = open(Precision::F16, group.rank())?;
        join(&mut backend, &group, false)?;
        let buf = gradient(&mut backend, &[1.0; 100]);
        backend.all_reduce(buf, 0, 100)?;
        Ok(backend.sync()?)
    });
    some_says(&said, &["NCCL reports: remote process exited", "Connection closed by remote peer"]);
}

/// A library that cannot be used is a sentence on every member, and nobody sums in another way.
fn refused(start: &str, end: &str) {
    let said = ends(SHORT, |group| device(Precision::F16, group, false).map(drop));
    some_says(&said, &[start, end]);
}

/// Without a library sums go through the hosts, and it is said why.
fn no_library() {
    let bare = folder().parent().expect("a folder").join("emulator-bare");
    std::fs::create_dir_all(&bare).unwrap();
    for library in ["libcuda.so.1", "libcublasLt.so.13"] {
        std::fs::copy(folder().join(library), bare.join(library)).unwrap();
    }
    let data = planted::tastes(3, 30, 21, 4).unwrap();
    let outcomes = each(2, LIMIT, |group| {
        let backend = cuda::open_device(&bare, Precision::F16, true, group.rank()).unwrap();
        let device = Device::in_group(Box::new(backend), group, false).unwrap();
        let Exchange::Hosts(why) = device.exchange() else { panic!("{:?}", device.exchange()) };
        assert!(why.contains("pip install nvidia-nccl-cu13"), "{why}");
        trained(&device, &model(Member::MultVae), &config(25), &data, Placement::Auto, None).unwrap()
    });
    assert!(outcomes[0].state.weights == outcomes[1].state.weights);
}
