//! What launchers set, as they set it, and what people make of it.

use std::{collections::HashMap, process::Command};

use proptest::prelude::*;
use vaecf_core::{
    Kind, Result,
    group::{Launch, launched},
};

/// The launch of an environment of `NAME=value`, separated by spaces.
fn of(environment: &str) -> Result<Option<Launch>> {
    let set: HashMap<&str, &str> = environment.split_whitespace().filter_map(|entry| entry.split_once('=')).collect();
    launched(|name| set.get(name).map(|&value| value.to_owned()))
}

fn launch(environment: &str) -> Launch {
    of(environment).unwrap_or_else(|error| panic!("{environment}: {error}")).expect(environment)
}

/// Rank, world, rank and members on this host.
fn numbers(launch: &Launch) -> [u32; 4] {
    [launch.rank, launch.world, launch.local_rank, launch.local_world]
}

/// The sentence, which must be about what the caller did and say all of `words`.
fn refused(environment: &str, words: &[&str]) {
    let error = of(environment).expect_err(environment);
    assert_eq!(error.kind(), Kind::Usage, "{environment}: {error}");
    let sentence = error.to_string();
    for word in words {
        assert!(sentence.contains(word), "{environment}: no {word:?} in: {sentence}");
    }
}

const TORCHRUN: &str = "LOCAL_RANK=1 RANK=5 GROUP_RANK=1 ROLE_RANK=5 ROLE_NAME=default LOCAL_WORLD_SIZE=4 WORLD_SIZE=8 \
    GROUP_WORLD_SIZE=2 ROLE_WORLD_SIZE=8 MASTER_ADDR=node1 MASTER_PORT=29400 TORCHELASTIC_RESTART_COUNT=0 \
    TORCHELASTIC_MAX_RESTARTS=3 TORCHELASTIC_RUN_ID=none TORCHELASTIC_USE_AGENT_STORE=True \
    TORCH_NCCL_ASYNC_ERROR_HANDLING=1 OMP_NUM_THREADS=1 \
    TORCHELASTIC_ERROR_FILE=/tmp/torchelastic_x/none_y/attempt_0/1/error.json";

/// What torchrun gives to a member, of two hosts with four each.
fn torchrun(rank: u32, port: u16, run: &str, restarts: u32) -> String {
    let (host, here) = (rank / 4, rank % 4);
    let run = if run.is_empty() { String::new() } else { format!("TORCHELASTIC_RUN_ID={run}") };
    format!(
        "LOCAL_RANK={here} RANK={rank} GROUP_RANK={host} ROLE_RANK={rank} ROLE_NAME=default LOCAL_WORLD_SIZE=4 \
         WORLD_SIZE=8 GROUP_WORLD_SIZE=2 ROLE_WORLD_SIZE=8 MASTER_ADDR=node1 MASTER_PORT={port} \
         TORCHELASTIC_RESTART_COUNT={restarts} TORCHELASTIC_MAX_RESTARTS=100 {run} TORCHELASTIC_USE_AGENT_STORE=True"
    )
}

/// Of mpirun 4.1.
const OPEN_MPI: &str = "OMPI_APP_CTX_NUM_PROCS=2 OMPI_COMM_WORLD_LOCAL_RANK=1 OMPI_COMM_WORLD_LOCAL_SIZE=2 \
    OMPI_COMM_WORLD_NODE_RANK=1 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_MCA_ess_base_jobid=689242113 \
    OMPI_MCA_ess_base_vpid=1 OMPI_UNIVERSE_SIZE=2 PMIX_ID=689242113.1 PMIX_NAMESPACE=689242113 PMIX_RANK=1";

const MPICH: &str = "PMI_RANK=2 PMI_FD=9 PMI_SIZE=4 MPI_LOCALNRANKS=4 MPI_LOCALRANKID=2";

/// The second task on the second of two hosts, by srun.
const SLURM: &str = "SLURM_JOB_ID=4711 SLURM_JOBID=4711 SLURM_STEP_ID=0 SLURM_STEPID=0 SLURM_PROCID=5 SLURM_LOCALID=1 \
    SLURM_NODEID=1 SLURM_NTASKS=8 SLURM_NPROCS=8 SLURM_STEP_NUM_TASKS=8 SLURM_STEP_NUM_NODES=2 \
    SLURM_STEP_TASKS_PER_NODE=4(x2) SLURM_TASKS_PER_NODE=4(x2) SLURM_JOB_NODELIST=gpu[08-11] \
    SLURM_NODELIST=gpu[08-11] SLURM_STEP_NODELIST=gpu[09-10] SLURM_JOB_NUM_NODES=4";

#[test]
fn no_launcher_is_no_launch() {
    assert_eq!(of("HOME=/root PATH=/bin").unwrap(), None);
    // What remains of `RANK= vaecf train`.
    assert_eq!(of("RANK= WORLD_SIZE=").unwrap(), None);
    // A batch script of Slurm that does not call srun.
    let batch = "SLURM_JOB_ID=4711 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=8 SLURM_NPROCS=8 \
        SLURM_JOB_NODELIST=gpu[08-11] SLURM_TASKS_PER_NODE=4(x2)";
    assert_eq!(of(batch).unwrap(), None);
}

#[test]
fn launchers_are_known_by_what_they_set() {
    let torchrun = launch(TORCHRUN);
    assert_eq!((numbers(&torchrun), torchrun.by), ([5, 8, 1, 4], "RANK and WORLD_SIZE"));
    assert!(torchrun.meeting.unwrap().starts_with("node1:"));

    let open_mpi = launch(OPEN_MPI);
    assert_eq!((numbers(&open_mpi), open_mpi.by), ([1, 2, 1, 2], "Open MPI"));
    assert!(open_mpi.meeting.unwrap().starts_with("127.0.0.1:"));

    let mpich = launch(MPICH);
    assert_eq!((numbers(&mpich), mpich.by), ([2, 4, 2, 4], "PMI"));
    assert_eq!(mpich.meeting.as_deref(), Some("127.0.0.1:29500"));

    let slurm = launch(SLURM);
    assert_eq!((numbers(&slurm), slurm.by), ([5, 8, 1, 4], "Slurm"));
    assert!(slurm.meeting.unwrap().starts_with("gpu09:"));
}

#[test]
fn one_launcher_may_start_another() {
    // torchrun on each of two hosts by srun, and mpirun in a job of Slurm, which starts its daemons by srun.
    let srun = "SLURM_JOB_ID=4711 SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=0 SLURM_NODEID=1 \
        SLURM_STEP_NODELIST=gpu10 SLURM_JOB_NODELIST=gpu[09-10]";
    assert_eq!(numbers(&launch(&format!("{TORCHRUN} {srun}"))), [5, 8, 1, 4]);
    let two_hosts = "OMPI_COMM_WORLD_RANK=2 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0 \
        OMPI_COMM_WORLD_LOCAL_SIZE=2 PMIX_NAMESPACE=77";
    let mpirun = launch(&format!("{two_hosts} {srun}"));
    assert_eq!((numbers(&mpirun), mpirun.by), ([2, 4, 0, 2], "Open MPI"));
    assert!(mpirun.meeting.unwrap().starts_with("gpu09:"));
    // Nobody says where two hosts meet.
    assert_eq!(launch(two_hosts).meeting, None);
    // Scripts for srun that name the world, but not the rank.
    assert_eq!(launch(&format!("{SLURM} WORLD_SIZE=8 MASTER_ADDR=gpu09")).by, "Slurm");
    // Variables of two kinds that say the same.
    assert_eq!(numbers(&launch(&format!("{OPEN_MPI} RANK=1 WORLD_SIZE=2 LOCAL_RANK=1"))), [1, 2, 1, 2]);
}

#[test]
fn members_on_a_host_are_counted_where_they_can_be() {
    assert_eq!(numbers(&launch("RANK=3 WORLD_SIZE=4 MASTER_ADDR=node1")), [3, 4, 0, 1]);
    assert_eq!(numbers(&launch("RANK=3 WORLD_SIZE=4 MASTER_ADDR=node1 LOCAL_RANK=1")), [3, 4, 1, 2]);
    assert_eq!(numbers(&launch("RANK=3 WORLD_SIZE=4 MASTER_ADDR=localhost")), [3, 4, 3, 4]);
    assert_eq!(numbers(&launch("RANK=3 WORLD_SIZE=4 MASTER_ADDR=::1 LOCAL_RANK=2")), [3, 4, 2, 4]);
    assert_eq!(numbers(&launch("RANK=0 WORLD_SIZE=1")), [0, 1, 0, 1]);
    let uneven = SLURM.replace("SLURM_STEP_TASKS_PER_NODE=4(x2)", "SLURM_STEP_TASKS_PER_NODE=6,2");
    assert_eq!(numbers(&launch(&uneven)), [5, 8, 1, 2]);
    let one_host = "SLURM_JOB_ID=1 SLURM_STEP_ID=2 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1 \
        SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=gpu3";
    let one_host = launch(one_host);
    assert_eq!(numbers(&one_host), [1, 2, 1, 2]);
    assert!(one_host.meeting.unwrap().starts_with("127.0.0.1:"));
}

/// A task of srun on two hosts, with three of the five on the first.
fn task(rank: u32) -> String {
    let (host, here) = if rank < 3 { (0, rank) } else { (1, rank - 3) };
    format!(
        "SLURM_JOB_ID=4711 SLURM_STEP_ID=0 SLURM_PROCID={rank} SLURM_LOCALID={here} SLURM_NODEID={host} SLURM_NTASKS=5 \
         SLURM_STEP_NUM_TASKS=5 SLURM_STEP_TASKS_PER_NODE=3,2 SLURM_TASKS_PER_NODE=4(x2) SLURM_STEP_NODELIST=gpu[09-10] \
         SLURM_JOB_NODELIST=gpu[08-11]"
    )
}

#[test]
fn slurm_tells_of_the_hosts_where_others_do_not() {
    for rank in 0..5 {
        let slurms = launch(&task(rank));
        let here = if rank < 3 { [rank, 5, rank, 3] } else { [rank, 5, rank - 3, 2] };
        // srun --mpi=pmi2, and scripts that export what Slurm says.
        let pmi2 = launch(&format!("{} PMI_RANK={rank} PMI_SIZE=5 PMI_FD=9 PMI_JOBID=4711.0", task(rank)));
        assert_eq!((numbers(&pmi2), pmi2.by), (here, "PMI"));
        assert_eq!(pmi2.meeting, slurms.meeting);
        let exported = format!("{} RANK={rank} WORLD_SIZE=5 MASTER_ADDR=gpu09", task(rank));
        let script = launch(&exported);
        assert_eq!((numbers(&script), script.by), (here, "RANK and WORLD_SIZE"));
        assert_eq!(script.meeting.as_deref(), Some("gpu09:29500"));
        assert_eq!(numbers(&launch(&format!("{exported} LOCAL_RANK={}", here[2]))), here);
        // Where only the job's numbers are there.
        let job =
            exported.replace("STEP_NUM_TASKS", "_").replace("SLURM_TASKS_PER_NODE=4(x2)", "SLURM_TASKS_PER_NODE=3,2");
        assert_eq!(numbers(&launch(&job.replace("STEP_TASKS_PER_NODE", "_"))), here);
    }
    // On one host, they meet there.
    let one_host = launch(
        "PMI_RANK=1 PMI_SIZE=2 SLURM_JOB_ID=1 SLURM_STEP_ID=2 SLURM_PROCID=1 SLURM_STEP_NUM_TASKS=2 SLURM_LOCALID=1 \
         SLURM_NODEID=0 SLURM_STEP_TASKS_PER_NODE=2 SLURM_STEP_NODELIST=gpu3 SLURM_JOB_NODELIST=gpu[3-4]",
    );
    assert_eq!(numbers(&one_host), [1, 2, 1, 2]);
    assert!(one_host.meeting.unwrap().starts_with("127.0.0.1:"));
}

#[test]
fn slurm_tells_nothing_of_other_launches() {
    // Another rank, another world, or another rank on this host than Slurm's.
    for names in [["RANK", "WORLD_SIZE"], ["PMI_RANK", "PMI_SIZE"]] {
        let of = |rank: u32, world: u32| format!("{} {}={rank} {}={world}", task(4), names[0], names[1]);
        assert_eq!(numbers(&launch(&of(3, 5))), [3, 5, 0, 1]);
        assert_eq!(numbers(&launch(&of(4, 10))), [4, 10, 0, 1]);
        assert_eq!(numbers(&launch(&of(4, 5))), [4, 5, 1, 2]);
        assert!(launch(&of(3, 5)).meeting.unwrap().starts_with("gpu08:"));
    }
    let exported = format!("{} RANK=4 WORLD_SIZE=5", task(4));
    assert_eq!(numbers(&launch(&format!("{exported} LOCAL_RANK=0"))), [4, 5, 0, 1]);
    // What was said counts.
    assert_eq!(numbers(&launch(&format!("{exported} LOCAL_RANK=2 LOCAL_WORLD_SIZE=3"))), [4, 5, 2, 3]);
    assert_eq!(numbers(&launch(&format!("{exported} MASTER_ADDR=localhost"))), [4, 5, 4, 5]);
}

#[test]
fn torchrun_keeps_its_port() {
    let meeting = |environment: &str| launch(environment).meeting.unwrap();
    assert_ne!(meeting(TORCHRUN), "node1:29400");
    let theirs = TORCHRUN.replace("AGENT_STORE=True", "AGENT_STORE=False");
    assert_eq!(meeting(&theirs), "node1:29400");
    // The port that is meant where none is said.
    assert_ne!(meeting(&TORCHRUN.replace("MASTER_PORT=29400", "")), "node1:29500");
    assert_eq!(meeting(&TORCHRUN.replace("29400", "29500")), meeting(&TORCHRUN.replace("MASTER_PORT=29400", "")));
    refused(&TORCHRUN.replace("RESTART_COUNT=0", "RESTART_COUNT=x"), &["TORCHELASTIC_RESTART_COUNT is \"x\""]);
    // Wherever the agent listens, among the ports of runs, too.
    for at in 20_000..=32_767 {
        let ports = [0, 1, 2].map(|restarts| meeting(&torchrun(0, at, "none", restarts)));
        assert!(!ports.contains(&format!("node1:{at}")) && ports[0] != ports[1] && ports[1] != ports[2], "{at}");
    }
}

#[test]
fn the_meeting_is_where_it_was_set() {
    let meeting = |more: &str| launch(&format!("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 {more}")).meeting;
    assert_eq!(meeting(""), None);
    assert_eq!(meeting("MASTER_PORT=7").as_deref(), None);
    assert_eq!(meeting("MASTER_ADDR=a").as_deref(), Some("a:29500"));
    assert_eq!(meeting("MASTER_ADDR=10.0.0.1 MASTER_PORT=7").as_deref(), Some("10.0.0.1:7"));
    assert_eq!(meeting("MASTER_ADDR=fe80::2").as_deref(), Some("[fe80::2]:29500"));
    assert_eq!(meeting("MASTER_ADDR=[fe80::2] MASTER_PORT=7").as_deref(), Some("[fe80::2]:7"));
    assert_eq!(launch(&format!("{OPEN_MPI} MASTER_PORT=7")).meeting.as_deref(), Some("127.0.0.1:7"));
    assert_eq!(launch(&format!("{OPEN_MPI} MASTER_ADDR=b MASTER_PORT=7")).meeting.as_deref(), Some("b:7"));
    for (list, first) in [
        ("gpu3", "gpu3"),
        ("a,b", "a"),
        ("node[03-07,9]", "node03"),
        ("node[3,5-6]-ib,gpu1", "node3-ib"),
        ("rack[1-2]n[004-009]", "rack1n004"),
        ("login,node[1-2]", "login"),
    ] {
        let slurm = SLURM.replace("SLURM_STEP_NODELIST=gpu[09-10]", &format!("SLURM_STEP_NODELIST={list}"));
        let meeting = launch(&slurm).meeting.unwrap();
        assert_eq!(meeting.rsplit_once(':').unwrap().0, first);
    }
}

#[test]
fn half_of_an_environment_is_refused() {
    refused("RANK=0", &["RANK is set", "WORLD_SIZE is not", "unset RANK"]);
    refused("WORLD_SIZE=2", &["WORLD_SIZE is set", "but RANK is not"]);
    refused("LOCAL_RANK=1", &["LOCAL_RANK is set", "RANK and WORLD_SIZE are not"]);
    refused("MASTER_ADDR=node1", &["MASTER_ADDR is set", "RANK and WORLD_SIZE are not"]);
    refused("OMPI_COMM_WORLD_RANK=0", &["OMPI_COMM_WORLD_SIZE is not"]);
    refused("PMI_SIZE=2", &["PMI_RANK is not"]);
    refused("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2", &["LOCAL_WORLD_SIZE is set", "LOCAL_RANK is not"]);
}

#[test]
fn contradictions_are_refused() {
    refused("RANK=2 WORLD_SIZE=2", &["RANK is 2", "WORLD_SIZE is 2"]);
    refused("RANK=0 WORLD_SIZE=0", &["WORLD_SIZE is 0"]);
    refused("RANK=-1 WORLD_SIZE=2", &["RANK is \"-1\""]);
    refused("RANK=one WORLD_SIZE=2", &["RANK is \"one\""]);
    refused("RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", &["LOCAL_RANK is 2", "LOCAL_WORLD_SIZE is 2"]);
    refused("RANK=0 WORLD_SIZE=2 LOCAL_RANK=2", &["LOCAL_RANK is 2", "WORLD_SIZE is 2"]);
    refused("RANK=0 WORLD_SIZE=2 LOCAL_RANK=2 LOCAL_WORLD_SIZE=4", &["LOCAL_WORLD_SIZE is 4", "only 2 members"]);
    refused("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=x", &["MASTER_PORT is \"x\"", "65535"]);
    refused("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a MASTER_PORT=70000", &["MASTER_PORT is \"70000\""]);
    refused("RANK=0 WORLD_SIZE=2 MASTER_ADDR=a:7", &["MASTER_ADDR is \"a:7\"", "MASTER_PORT"]);
    refused(&format!("{OPEN_MPI} WORLD_SIZE=4 RANK=1"), &["OMPI_COMM_WORLD_SIZE is 2", "WORLD_SIZE is 4"]);
    refused(&format!("{OPEN_MPI} RANK=0"), &["RANK is 0", "OMPI_COMM_WORLD_RANK is 1"]);
    refused(&format!("{SLURM} WORLD_SIZE=2"), &["WORLD_SIZE is 2", "SLURM_STEP_NUM_TASKS is 8"]);
}

#[test]
fn open_mpi_as_installed() {
    let mpirun = |count: &str| {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe", "-np", count, "sh", "-c"]);
        mpirun.arg("echo $(env | grep -E '^(OMPI|PMI|SLURM|RANK|WORLD|LOCAL|MASTER)' | grep -v ' ')").output()
    };
    let jobs: Vec<Vec<Launch>> = ["1", "3", "3"]
        .into_iter()
        .map_while(|count| match mpirun(count) {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let mut members: Vec<_> = String::from_utf8(output.stdout).unwrap().lines().map(launch).collect();
                members.sort_by_key(|member| member.rank);
                Some(members)
            }
            Err(error) => {
                eprintln!("skipped: no mpirun here ({error})");
                None
            }
        })
        .collect();
    for job in &jobs {
        let world = job.len() as u32;
        for (rank, member) in (0..).zip(job) {
            assert_eq!((numbers(member), member.by), ([rank, world, rank, world], "Open MPI"));
            assert_eq!(member.meeting, job[0].meeting);
        }
    }
    if let [one, three, again] = &jobs[..] {
        assert_eq!((one.len(), three.len(), again.len()), (1, 3, 3));
        assert_ne!(three[0].meeting, again[0].meeting);
    }
}

proptest! {
    /// Whatever is set, what comes of it is a launch that can be, or a sentence.
    #[test]
    fn any_environment(set in prop::collection::hash_map(
        prop::sample::select(vec![
            "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
            "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
            "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS",
            "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST",
            "SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "SLURM_NTASKS", "SLURM_TASKS_PER_NODE",
            "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
        ]),
        prop_oneof![3 => "[0-3]", 1 => Just("True".to_owned()), 1 => "[a-c0-9(x),\\[\\]:-]{0,9}", 1 => any::<String>()],
        0..12,
    )) {
        match launched(|name| set.get(name).cloned()) {
            Ok(Some(launch)) => {
                prop_assert!(launch.rank < launch.world && launch.local_rank < launch.local_world);
                prop_assert!(launch.local_world <= launch.world);
                if let Some(meeting) = launch.meeting {
                    let (host, port) = meeting.rsplit_once(':').unwrap();
                    prop_assert!(!host.is_empty() && port.parse::<u16>().unwrap() > 0);
                }
            }
            Ok(None) => prop_assert!(set.get("RANK").is_none_or(|rank| rank.trim().is_empty())),
            Err(error) => prop_assert_eq!(error.kind(), Kind::Usage),
        }
    }

    /// The members of a run of torchrun meet at one place, which its agent does not have, and elsewhere after a restart.
    #[test]
    fn torchruns_meet_beside_their_agents(port in 1_u16.., run in "[a-z0-9-]{0,12}", restarts in 0_u32..) {
        let at = |rank, restarts| launch(&torchrun(rank, port, &run, restarts)).meeting.unwrap();
        let place = at(0, restarts);
        for rank in 1..8 {
            prop_assert_eq!(&at(rank, restarts), &place);
        }
        let chosen = place.strip_prefix("node1:").unwrap().parse::<u16>().unwrap();
        prop_assert!(chosen != port && (20_000..32_768).contains(&chosen));
        prop_assert!(at(0, restarts.wrapping_add(1)) != place);
    }

    /// The members of a job meet at one place, and those of another at another, mostly.
    #[test]
    fn jobs_meet_apart(hosts in 1_u32..4, each in 1_u32..4, first in 1_u32..1_000_000) {
        let meeting = |job: u32, rank: u32| {
            let world = hosts * each;
            launch(&format!(
                "SLURM_JOB_ID={job} SLURM_STEP_ID=0 SLURM_PROCID={rank} SLURM_STEP_NUM_TASKS={world} SLURM_LOCALID={} \
                 SLURM_NODEID={} SLURM_STEP_TASKS_PER_NODE={each}(x{hosts}) SLURM_STEP_NODELIST=n[1-{hosts}]",
                rank % each, rank / each,
            )).meeting.unwrap()
        };
        let mut places: Vec<String> = (first..first + 20).map(|job| meeting(job, 0)).collect();
        for rank in 1..hosts * each {
            prop_assert_eq!(&meeting(first, rank), &places[0]);
        }
        let host = if hosts == 1 { "127.0.0.1:" } else { "n1:" };
        prop_assert!(places[0].starts_with(host));
        places.sort();
        places.dedup();
        prop_assert!(places.len() >= 18);
    }
}
