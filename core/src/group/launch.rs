//! What a launcher says in variables.

use crate::error::{Error, Result};

/// The port where only the address of the meeting is known. PyTorch has the same.
const PORT: u16 = 29500;

/// Which member this process is, as its launcher says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Which member, from 0.
    pub rank: u32,
    /// How many members there are.
    pub world: u32,
    /// Which of the members on its host, from 0.
    pub local_rank: u32,
    /// How many members are on its host. Where the launcher does not say, as many as must be.
    pub local_world: u32,
    /// Where the members meet, as `host:port`, with the host of rank 0. None where nobody says.
    pub meeting: Option<String>,
    /// Whose variables these are.
    pub by: &'static str,
}

/// A launcher's names for the same four numbers.
struct Names {
    by: &'static str,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static [&'static str],
    local_world: &'static [&'static str],
}

const TORCHRUN: Names = Names {
    by: "RANK and WORLD_SIZE",
    rank: "RANK",
    world: "WORLD_SIZE",
    local_rank: &["LOCAL_RANK"],
    local_world: &["LOCAL_WORLD_SIZE"],
};

const OPEN_MPI: Names = Names {
    by: "Open MPI",
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    local_rank: &["OMPI_COMM_WORLD_LOCAL_RANK"],
    local_world: &["OMPI_COMM_WORLD_LOCAL_SIZE"],
};

const PMI: Names = Names {
    by: "PMI",
    rank: "PMI_RANK",
    world: "PMI_SIZE",
    // The second is what the launchers of HPE Cray say.
    local_rank: &["MPI_LOCALRANKID", "PMI_LOCAL_RANK"],
    local_world: &["MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"],
};

/// A batch script without srun has the rank, but not the number of tasks: it is no launch.
const SLURM: Names = Names {
    by: "Slurm",
    rank: "SLURM_PROCID",
    world: "SLURM_STEP_NUM_TASKS",
    local_rank: &["SLURM_LOCALID"],
    local_world: &[],
};

/// The tasks of a whole job, for launches that have taken their ranks from Slurm's.
const SLURM_JOB: Names = Names { world: "SLURM_NTASKS", ..SLURM };

/// Which member this process is, if its variables tell of a launch. `get` gives the value of a variable, which is mostly
/// `|name| std::env::var(name).ok()`; empty ones count as not set.
///
/// Four kinds of variables are read, and the first that are complete count:
///
/// | set by | rank, world | on this host |
/// |---|---|---|
/// | torchrun, many scripts | `RANK`, `WORLD_SIZE` | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` |
/// | mpirun of Open MPI | `OMPI_COMM_WORLD_RANK`, `..._SIZE` | `OMPI_COMM_WORLD_LOCAL_RANK`, `..._LOCAL_SIZE` |
/// | mpirun of MPICH and Intel | `PMI_RANK`, `PMI_SIZE` | `MPI_LOCALRANKID`, `MPI_LOCALNRANKS` |
/// | srun of Slurm | `SLURM_PROCID`, `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID`, `SLURM_STEP_TASKS_PER_NODE` |
///
/// The first three must not contradict each other. Slurm's are looked at last and contradict nothing: other launchers
/// start one process on each host by srun, and these start the members. But where the others do not say who is on this
/// host (`srun --mpi=pmi2`, `export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS`), Slurm does: if `SLURM_PROCID` is the
/// rank, and `SLURM_STEP_NUM_TASKS` or `SLURM_NTASKS` the world, then `SLURM_LOCALID` and `SLURM_STEP_TASKS_PER_NODE` or
/// `SLURM_TASKS_PER_NODE` tell of this host.
///
/// Members meet at `MASTER_ADDR`, port `MASTER_PORT` (29500 where it is not set, as elsewhere). Without `MASTER_ADDR`
/// they meet on their host if it is one, else on the first host of Slurm's list, at `MASTER_PORT` or a port made of the
/// job's name. Where `TORCHELASTIC_USE_AGENT_STORE` is `True`, torchrun itself listens at `MASTER_PORT`, and the port is
/// another one, made of it, `TORCHELASTIC_RUN_ID` and `TORCHELASTIC_RESTART_COUNT`. torchrun counts restarts on each host
/// by itself: hosts whose counts differ do not meet.
///
/// # Errors
/// Variables that are half set, no numbers, or contradict each other.
pub fn launched(get: impl Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
    let get = |name: &str| get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let variables = Variables { get: &get };
    let mut found: Option<(&Names, u32, u32)> = None;
    for names in [&TORCHRUN, &OPEN_MPI, &PMI] {
        let (rank, world) = (variables.number(names.rank)?, variables.number(names.world)?);
        if let (None, Some(rank), Some(world)) = (found, rank, world) {
            found = Some((names, rank, world));
        }
    }
    if found.is_none()
        && let (Some(rank), Some(world)) = (variables.number(SLURM.rank)?, variables.number(SLURM.world)?)
    {
        found = Some((&SLURM, rank, world));
    }
    let Some((names, rank, world)) = found else {
        return variables.nothing_begun().map(|()| None);
    };
    for other in [&TORCHRUN, &OPEN_MPI, &PMI] {
        for (theirs, name, own) in [(other.rank, names.rank, rank), (other.world, names.world, world)] {
            if let Some(value) = variables.number(theirs)?.filter(|&value| value != own) {
                return Err(Error::usage(format!(
                    "{theirs} is {value}, but {name} is {own}: unset the one that is not meant"
                )));
            }
        }
    }
    if rank >= world {
        return Err(Error::usage(format!(
            "{} is {rank}, but {} is {world}: ranks count from 0 and end below the number of members",
            names.rank, names.world
        )));
    }
    let hosts = variables.who_tells_of_hosts(names, rank, world)?;
    let (local_rank, local_world) = variables.on_this_host(hosts, rank, world)?;
    Ok(Some(Launch {
        rank,
        world,
        local_rank,
        local_world: local_world.unwrap_or(local_rank + 1),
        meeting: variables.meeting(hosts, local_world == Some(world))?,
        by: names.by,
    }))
}

struct Variables<'a> {
    get: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.get)(name)
    }

    fn number(&self, name: &str) -> Result<Option<u32>> {
        let Some(value) = self.text(name) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::usage(format!("{name} is \"{value}\", which is no count: set a number, or unset it"))),
        }
    }

    /// The first of these names that is set, and its number.
    fn first(&self, names: &[&'static str]) -> Result<Option<(&'static str, u32)>> {
        names.iter().find_map(|name| self.number(name).map(|n| n.map(|n| (*name, n))).transpose()).transpose()
    }

    /// Refuses variables that were set for a launch, without those that make one.
    fn nothing_begun(&self) -> Result<()> {
        let set = |name: &&str| self.text(name).is_some();
        for names in [&TORCHRUN, &OPEN_MPI, &PMI] {
            let all = [names.rank, names.world];
            let missing: Vec<&str> = all.iter().filter(|name| !set(name)).copied().collect();
            let shared: &[&str] = if names.rank == TORCHRUN.rank { &["MASTER_ADDR", "MASTER_PORT"] } else { &[] };
            let mut begun = all.iter().chain(names.local_rank).chain(names.local_world).chain(shared);
            if let Some(begun) = begun.find(|name| set(name)) {
                let (are, them) = if missing.len() == 1 { ("is", "it") } else { ("are", "them") };
                return Err(Error::usage(format!(
                    "{begun} is set, but {} {are} not: set {them}, too, to be one of several members, or unset {begun}",
                    missing.join(" and ")
                )));
            }
        }
        Ok(())
    }

    /// Whether all members are on this host, whatever else is set.
    fn alone(&self, world: u32) -> bool {
        world == 1 || self.text("MASTER_ADDR").is_some_and(|host| is_loopback(&host))
    }

    /// Whose variables tell of the hosts: Slurm's where the launcher's do not, and Slurm has started the same members.
    fn who_tells_of_hosts<'n>(&self, names: &'n Names, rank: u32, world: u32) -> Result<&'n Names> {
        if names.rank == SLURM.rank || self.alone(world) || self.first(names.local_world)?.is_some() {
            return Ok(names);
        }
        let (said, slurms) = (self.first(names.local_rank)?, self.first(SLURM.local_rank)?);
        let same_here = slurms.is_some_and(|(_, here)| said.is_none_or(|(_, said)| said == here));
        for slurm in [&SLURM, &SLURM_JOB] {
            if same_here && self.number(slurm.rank)? == Some(rank) && self.number(slurm.world)? == Some(world) {
                return Ok(slurm);
            }
        }
        Ok(names)
    }

    /// The rank on this host, and how many members this host has, if that is known.
    fn on_this_host(&self, names: &Names, rank: u32, world: u32) -> Result<(u32, Option<u32>)> {
        let local_rank = self.first(names.local_rank)?;
        let local_world = self.first(names.local_world)?;
        let (local_rank, local_world) = match (local_rank, local_world) {
            (None, Some((name, _))) => {
                return Err(Error::usage(format!("{name} is set, but {} is not: set both", names.local_rank[0])));
            }
            (local_rank, Some((name, count))) => (local_rank, Some((name, count))),
            (local_rank, None) if names.rank == SLURM.rank => (local_rank, self.slurm_tasks_here(names)?),
            (local_rank, None) => (local_rank, None),
        };
        let alone = self.alone(world);
        match (local_rank, local_world) {
            (Some((here, n)), Some((name, count))) if n >= count => Err(Error::usage(format!(
                "{here} is {n}, but {name} is {count}: ranks count from 0 and end below the number of members"
            ))),
            (_, Some((name, count))) if count > world => {
                Err(Error::usage(format!("{name} is {count}, but there are only {world} members by {}", names.world)))
            }
            (Some((here, n)), None) if n >= world => Err(Error::usage(format!(
                "{here} is {n}, but {} is {world}: ranks count from 0 and end below the number of members",
                names.world
            ))),
            (Some((_, n)), None) if alone => Ok((n, Some(world))),
            (None, None) if alone => Ok((rank, Some(world))),
            (local_rank, local_world) => Ok((local_rank.map_or(0, |of| of.1), local_world.map(|of| of.1))),
        }
    }

    /// Slurm's tasks on this host, from a list such as `4(x2),3`.
    fn slurm_tasks_here(&self, names: &Names) -> Result<Option<(&'static str, u32)>> {
        let of_step = names.world == SLURM.world;
        let name = if of_step { "SLURM_STEP_TASKS_PER_NODE" } else { "SLURM_TASKS_PER_NODE" };
        let mut node = self.number("SLURM_NODEID")?.unwrap_or(0);
        for entry in self.text(name).unwrap_or_default().split(',') {
            let (tasks, times) = match entry.split_once("(x") {
                Some((tasks, times)) => (tasks, times.trim_end_matches(')').parse().unwrap_or(1)),
                None => (entry, 1),
            };
            if node < times {
                return Ok(tasks.parse().ok().map(|tasks| (name, tasks)));
            }
            node -= times;
        }
        Ok(None)
    }

    /// Where the members meet.
    fn meeting(&self, names: &Names, one_host: bool) -> Result<Option<String>> {
        let port = match self.text("MASTER_PORT").map(|value| (value.parse::<u16>(), value)) {
            Some((Ok(0) | Err(_), value)) => {
                return Err(Error::usage(format!("MASTER_PORT is \"{value}\": set a number from 1 to 65535")));
            }
            Some((Ok(port), _)) => Some(port),
            None => None,
        };
        // PyTorch asks for this very text.
        let port = match self.text("TORCHELASTIC_USE_AGENT_STORE").as_deref() {
            Some("True") => Some(self.port_beside(port.unwrap_or(PORT))?),
            _ => port,
        };
        if let Some(host) = self.text("MASTER_ADDR") {
            return Ok(Some(at(&plain_host(&host)?, port.unwrap_or(PORT))));
        }
        // srun may have started other launchers on all hosts but the first: the members of these have the job's list.
        let list = if names.world == SLURM.world { "SLURM_STEP_NODELIST" } else { "SLURM_JOB_NODELIST" };
        let host = if one_host { Some("127.0.0.1".into()) } else { self.text(list).and_then(|list| first_host(&list)) };
        Ok(host.map(|host| at(&host, port.or_else(|| self.job().map(|job| port_of(&job))).unwrap_or(PORT))))
    }

    /// The port of this run of torchrun, whose agent listens at `taken`. Each restart has the next, as the members before
    /// it may not have left theirs.
    fn port_beside(&self, taken: u16) -> Result<u16> {
        let run = self.text("TORCHELASTIC_RUN_ID").unwrap_or_default();
        let restarts = self.number("TORCHELASTIC_RESTART_COUNT")?.unwrap_or(0);
        let first = port_of(&format!("{run}.{taken}"));
        // So many still are below those of outgoing connections.
        let port = first + (restarts % 700) as u16;
        Ok(if (first..=port).contains(&taken) { port + 1 } else { port })
    }

    /// What all members of this job, and only they, have in common.
    fn job(&self) -> Option<String> {
        let slurm = || {
            let step = self.text("SLURM_STEP_ID").unwrap_or_default();
            self.text("SLURM_JOB_ID").map(|job| format!("{job}.{step}"))
        };
        self.text("PMIX_NAMESPACE").or_else(|| self.text("OMPI_MCA_ess_base_jobid")).or_else(slurm)
    }
}

/// An address as people write it, without what belongs into `MASTER_PORT`.
fn plain_host(host: &str) -> Result<String> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.is_empty() || bare.contains(':') && bare.parse::<std::net::Ipv6Addr>().is_err() {
        true => {
            Err(Error::usage(format!("MASTER_ADDR is \"{host}\": set the host alone, and its port as MASTER_PORT")))
        }
        false => Ok(bare.to_owned()),
    }
}

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn at(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A port for a job (FNV-1a of its name), below those that systems give to outgoing connections.
fn port_of(job: &str) -> u16 {
    let hash = job
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    20_000 + (hash % 12_000) as u16
}

/// The first of a list of hosts in Slurm's notation: `node[03-07,9],gpu1` begins with `node03`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list);
    while let Some(at) = rest.find(['[', ',']) {
        host += &rest[..at];
        if rest[at..].starts_with(',') {
            return Some(host).filter(|host| !host.is_empty());
        }
        let (inside, after) = rest[at + 1..].split_once(']')?;
        host += inside.split([',', '-']).next().unwrap_or_default();
        rest = after;
    }
    Some(host + rest).filter(|host| !host.is_empty())
}
