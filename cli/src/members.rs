//! A command that runs on several devices: every member, a thread or a process for each device, runs all of it, and
//! the root alone writes and shows.

use std::{thread, time::Duration};

use vaecf_core::{
    Error, Result,
    group::{self, Group, Launch},
};

use crate::{
    commands::Context,
    options::{Pick, Place, Several},
    output::{Done, Stop, Ui},
};

/// Runs a command on the devices that were asked for, or as the member of a group that a launcher has made this process.
pub(crate) fn run(context: Context, several: &Several, command: impl Fn(Context) -> Done + Sync) -> Done {
    let limit = Duration::from_secs_f64(several.group_timeout);
    let launched = group::launched(|name| std::env::var(name).ok())?.filter(|launch| launch.world > 1);
    match (&several.devices[..], launched) {
        ([], None) => command(context),
        ([], Some(launch)) => process(context, &launch, limit, command),
        (_, Some(launch)) => Err(Error::usage(format!(
            "--devices: {} started {} processes, each of which has a device of its own; leave --devices out, or start one \
             process",
            launch.by, launch.world
        ))
        .into()),
        ([one], None) => {
            let mut context = context;
            context.global.device = Some(one.clone());
            command(context)
        }
        (devices, None) => threads(&context, devices, limit, &command),
    }
}

/// This process is one member; the others are elsewhere.
fn process(mut context: Context, launch: &Launch, limit: Duration, command: impl Fn(Context) -> Done) -> Done {
    context.group = meet(launch, limit)?.beside(launch.local_world);
    let (rank, world) = (launch.local_rank, launch.local_world);
    let own = cores();
    let all = context.group.all_gather(own.as_bytes())?;
    let sharing = all.iter().filter(|other| own.as_bytes() == &other[..]).count() as u32;
    context.global.place = Place { rank, world, sharing: if own.is_empty() { world } else { sharing } };
    member(context, &command)
}

/// The host and the cores of it that this process may use, where the system tells: launchers may have bound it to some.
fn cores() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    allowed
        .map_or_else(String::new, |allowed| format!("{} {}", read("/proc/sys/kernel/hostname").trim(), allowed.trim()))
}

/// The group of the processes that a launcher has started.
fn meet(launch: &Launch, limit: Duration) -> Result<Group> {
    #[cfg(feature = "mpi")]
    if let Some(group) = crate::mpi::group(limit)? {
        return Ok(group);
    }
    let Launch { rank, world, meeting, by, .. } = launch;
    let meeting = meeting.as_deref().ok_or_else(|| {
        Error::usage(format!(
            "{by} started {world} processes on several hosts, and nothing says where they meet: set MASTER_ADDR to the host \
             of rank 0, and MASTER_PORT to a port that is free there (mpirun -x MASTER_ADDR=...)"
        ))
    })?;
    group::meet(*rank, *world, meeting, limit)
}

/// A thread for each device. The first error that is not about another's is the command's.
fn threads(context: &Context, devices: &[Pick], limit: Duration, command: &(impl Fn(Context) -> Done + Sync)) -> Done {
    let world = devices.len() as u32;
    let mut members = group::threads(world, limit).into_iter().zip(devices).zip(0..).map(|((group, device), rank)| {
        let mut context = Context { group, ..context.clone() };
        context.global.device = Some(device.clone());
        context.global.place = Place { rank, world, sharing: world };
        context
    });
    let root = members.next();
    let ends: Vec<Done> = thread::scope(|scope| {
        let others: Vec<_> = members.map(|context| scope.spawn(move || member(context, command))).collect();
        let root = root.map(|context| member(context, command));
        let ended = |end: thread::Result<Done>| end.unwrap_or(Err(Stop::Exit(1)));
        root.into_iter().chain(others.into_iter().map(|other| ended(other.join()))).collect()
    });
    let (mut first, mut own) = (Ok(()), None);
    for end in ends {
        if let Err(Stop::Failed(error)) = &end
            && !error.is_echo()
        {
            own = own.or(Some(end));
        } else if first.is_ok() {
            first = end;
        }
    }
    own.unwrap_or(first)
}

/// A member's part. Its own failure is told to the others; at a good end they wait for each other, so that none of them
/// takes another's end for a failure.
fn member(mut context: Context, command: &impl Fn(Context) -> Done) -> Done {
    let group = context.group.clone();
    if !group.is_root() {
        context.ui = Ui { notes: false, details: false, ..context.ui };
    }
    let done = command(context);
    if let Err(Stop::Failed(error)) = done {
        return Err(Stop::Failed(named(&group, group.report(error))));
    }
    group.leave()?;
    done
}

/// An error with the member whose it is; the root speaks for all.
fn named(group: &Group, error: Error) -> Error {
    if group.is_root() { error } else { error.context(format_args!("rank {}", group.rank())) }
}
