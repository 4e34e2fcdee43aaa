//! Members that are processes of MPI, and its messages between them.
//!
//! Nothing here waits in MPI: sends and receives are begun at once and looked at until they are done, so that a member
//! that is silent is told of in time. A failure goes to all as a message of its own, which each looks for while it
//! waits; those that do not wait are ended by the launcher ([`end`]).

use std::{
    ffi::c_int,
    mem,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use mpi::{Threading, environment, environment::Universe, ffi, traits::Communicator};
use vaecf_core::{
    Error, Result,
    group::{Alarm, Broken, Group, Link},
};

/// Bytes of a message, whose count is an `int`.
const CHUNK: usize = 1 << 24;

/// The message of a failure has as many, the rest of them zero: few enough to leave before anybody listens.
const WORD: usize = 1024;

/// The number of bytes that are said, before them.
const HEAD: usize = 8;

/// How long the others may take to hear of a failure.
const PARTING: Duration = Duration::from_millis(500);

/// What a message is about.
#[derive(Clone, Copy)]
enum Tag {
    Data,
    Failure,
}

/// This process as the member that mpirun has made it; none where no mpirun of several processes has started it.
///
/// # Errors
/// An mpirun that does not belong to the MPI that this program is linked with.
pub(crate) fn group(limit: Duration) -> Result<Option<Group>> {
    let count = |name: &str| std::env::var(name).ok().and_then(|count| count.parse::<u32>().ok());
    let Some(started) = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"].into_iter().find_map(count).filter(|&count| count > 1)
    else {
        return Ok(None);
    };
    let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(Error::failure("MPI was begun before"));
    };
    let library = environment::library_version().unwrap_or_default();
    let library = library.split([',', '\n', '\0']).next().unwrap_or_default().to_owned();
    let refuse = |universe: Universe, why: String| {
        // To finalize is to wait for all.
        mem::forget(universe);
        Err(Error::usage(why))
    };
    if threading < Threading::Serialized {
        return refuse(universe, format!("{library} cannot be used in a program with threads"));
    }
    let (rank, world) = (universe.world().rank() as u32, universe.world().size() as u32);
    if world != started {
        return refuse(
            universe,
            format!(
                "mpirun started {started} processes, but {library} knows of {world}: start vaecf by the mpirun of the MPI \
                 that it was built with"
            ),
        );
    }
    // SAFETY: both are constants of the library, which is initialized.
    unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
    let (alarm, names) = (Alarm::default(), Arc::new(OnceLock::new()));
    // SAFETY: a constant of the library.
    let anyone = unsafe { ffi::RSMPI_ANY_SOURCE };
    let failure = Transfer::receive(anyone, Tag::Failure, vec![0; WORD]).map_err(Error::failure)?;
    let (universe, failure) = (Some(universe), Some(failure));
    let link =
        Mpi { universe, rank, world, names: Arc::clone(&names), alarm: alarm.clone(), failure, spare: Vec::new() };
    let group = Group::new(rank, world, limit, alarm, Box::new(link));
    let host = environment::processor_name().unwrap_or_default();
    let own = format!("{host}, process {}", std::process::id());
    let all = group.all_gather(own.as_bytes())?;
    let words = |(rank, name): (usize, &Vec<u8>)| format!("rank {rank} ({})", String::from_utf8_lossy(name));
    // The link asks for the names that came over it.
    names.get_or_init(|| all.iter().enumerate().map(words).collect::<Vec<_>>());
    Ok(Some(group))
}

/// The last thing a process does. Where MPI was begun and not left in peace, the launcher ends all members.
pub(crate) fn end(code: u8) {
    if mpi::is_initialized() && !mpi::is_finalized() {
        // Those that listen end by themselves, and say so.
        thread::sleep(PARTING);
        // SAFETY: MPI is there, by the condition.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code.into()) };
    }
}

/// A message under way, and its bytes.
struct Transfer {
    rank: c_int,
    request: ffi::MPI_Request,
    bytes: Vec<u8>,
    done: bool,
}

// SAFETY: MPI was begun so that any thread may use it, one at a time; the link that has this is behind a lock.
unsafe impl Send for Transfer {}

impl Transfer {
    fn send(to: c_int, tag: Tag, mut bytes: Vec<u8>) -> std::result::Result<Self, String> {
        let (count, at) = (bytes.len() as c_int, bytes.as_mut_ptr().cast());
        // SAFETY: null is a constant of the library.
        let mut transfer = unsafe { Self { rank: to, request: ffi::RSMPI_REQUEST_NULL, bytes, done: true } };
        // SAFETY: so many bytes are there, and stay there and as they are until the message is done (see `drop`).
        let code = unsafe {
            let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Isend(at, count, kind, to, tag as c_int, world, &mut transfer.request)
        };
        transfer.begun(code)
    }

    /// The message must not be longer than these bytes are.
    fn receive(from: c_int, tag: Tag, mut bytes: Vec<u8>) -> std::result::Result<Self, String> {
        let (count, at) = (bytes.len() as c_int, bytes.as_mut_ptr().cast());
        // SAFETY: as above.
        let mut transfer = unsafe { Self { rank: from, request: ffi::RSMPI_REQUEST_NULL, bytes, done: true } };
        // SAFETY: so many bytes are there, and nobody looks at them until the message is done (see `drop`).
        let code = unsafe {
            let (kind, world) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Irecv(at, count, kind, from, tag as c_int, world, &mut transfer.request)
        };
        transfer.begun(code)
    }

    fn begun(mut self, code: c_int) -> std::result::Result<Self, String> {
        checked(code)?;
        self.done = false;
        Ok(self)
    }

    /// Whether it is done. Has MPI work at all messages, too.
    fn is_done(&mut self) -> std::result::Result<bool, String> {
        if !self.done {
            let mut done = 0;
            // SAFETY: the request was begun and is not done; nobody looks at the status.
            checked(unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
            self.done = done != 0;
        }
        Ok(self.done)
    }

    /// A receive that nothing has come for ends.
    fn cancel(mut self) {
        if !self.done {
            // SAFETY: the request was begun and is not done. To wait for a receive that was cancelled takes no other
            // process.
            let code = unsafe {
                ffi::MPI_Cancel(&mut self.request);
                ffi::MPI_Wait(&mut self.request, ffi::RSMPI_STATUS_IGNORE)
            };
            self.done = checked(code).is_ok();
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.done {
            // MPI may still read or write there. The process is about to end.
            mem::forget(mem::take(&mut self.bytes));
        }
    }
}

/// MPI's own words for what went wrong.
fn checked(code: c_int) -> std::result::Result<(), String> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let (mut words, mut len) = ([0_u8; ffi::MPI_MAX_ERROR_STRING as usize], 0);
    // SAFETY: there is as much room as the library takes at most.
    unsafe { ffi::MPI_Error_string(code, words.as_mut_ptr().cast(), &mut len) };
    let words = words.get(..len as usize).unwrap_or_default();
    Err(format!("MPI reports: {}", String::from_utf8_lossy(words)))
}

/// A member's end.
struct Mpi {
    /// None once it was finalized.
    universe: Option<Universe>,
    rank: u32,
    world: u32,
    names: Arc<OnceLock<Vec<String>>>,
    alarm: Alarm,
    /// Waits for the word of another's failure.
    failure: Option<Transfer>,
    /// Bytes of messages that are done, for others.
    spare: Vec<Vec<u8>>,
}

impl Mpi {
    fn room(&mut self, len: usize) -> Vec<u8> {
        let mut room = self.spare.pop().unwrap_or_default();
        room.resize(len, 0);
        room
    }

    fn reuse(&mut self, transfers: Vec<Transfer>) {
        for mut transfer in transfers {
            if self.spare.len() < 2 * self.world as usize {
                self.spare.push(mem::take(&mut transfer.bytes));
            }
        }
    }

    /// Whether the group goes on, which is looked at while anything is waited for.
    fn look(&mut self) -> std::result::Result<(), Broken> {
        if let Some(failure) = &mut self.failure
            && failure.is_done().map_err(Broken::Other)?
        {
            let word = &failure.bytes[..failure.bytes.iter().position(|&byte| byte == 0).unwrap_or(WORD)];
            self.alarm.raise(String::from_utf8_lossy(word));
            self.failure = None;
        }
        if self.alarm.is_raised() { Err(Broken::Alarm) } else { Ok(()) }
    }

    fn begin_sends(&mut self, out: &[(u32, &[u8])]) -> std::result::Result<Vec<Transfer>, String> {
        let mut sends = Vec::new();
        for &(to, bytes) in out {
            let (first, rest) = bytes.split_at(bytes.len().min(CHUNK));
            let mut room = self.room(0);
            room.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
            room.extend_from_slice(first);
            sends.push(Transfer::send(to as c_int, Tag::Data, room)?);
            for piece in rest.chunks(CHUNK) {
                let mut room = self.room(0);
                room.extend_from_slice(piece);
                sends.push(Transfer::send(to as c_int, Tag::Data, room)?);
            }
        }
        Ok(sends)
    }

    fn begin_receives(&mut self, into: &[(u32, &mut [u8])]) -> std::result::Result<Vec<Transfer>, String> {
        let mut receives = Vec::new();
        for (from, into) in into {
            let (from, first) = (*from as c_int, into.len().min(CHUNK));
            let room = self.room(HEAD + first);
            receives.push(Transfer::receive(from, Tag::Data, room)?);
            for piece in into[first..].chunks(CHUNK) {
                let room = self.room(piece.len());
                receives.push(Transfer::receive(from, Tag::Data, room)?);
            }
        }
        Ok(receives)
    }

    /// Waits for messages, the first of which that is not done is the one to blame.
    fn finish(&mut self, transfers: &mut [Transfer], deadline: Instant) -> std::result::Result<(), Broken> {
        let start = Instant::now();
        loop {
            let mut missing = None;
            for transfer in transfers.iter_mut().filter(|transfer| !transfer.done) {
                if !transfer.is_done().map_err(Broken::Other)? {
                    missing = missing.or(Some(transfer.rank as u32));
                }
            }
            let Some(rank) = missing else { return Ok(()) };
            self.look()?;
            if Instant::now() >= deadline {
                return Err(Broken::Silent(rank));
            }
            // What comes at once is not slept over; what takes long does not keep a core busy.
            match start.elapsed().as_micros() {
                0..200 => thread::yield_now(),
                200..20_000 => thread::sleep(Duration::from_micros(20)),
                _ => thread::sleep(Duration::from_micros(500)),
            }
        }
    }
}

impl Link for Mpi {
    fn name(&self) -> &'static str {
        "MPI"
    }

    fn member(&self, rank: u32) -> String {
        let name = self.names.get().and_then(|names| names.get(rank as usize));
        name.cloned().unwrap_or_else(|| format!("rank {rank}"))
    }

    fn exchange(
        &mut self,
        out: &[(u32, &[u8])],
        into: &mut [(u32, &mut [u8])],
        deadline: Instant,
    ) -> std::result::Result<(), Broken> {
        self.look()?;
        let mut transfers = self.begin_receives(into).map_err(Broken::Other)?;
        let received = transfers.len();
        transfers.extend(self.begin_sends(out).map_err(Broken::Other)?);
        self.finish(&mut transfers, deadline)?;
        let mut messages = transfers[..received].iter().map(|transfer| &transfer.bytes[..]);
        for (from, into) in into {
            let (head, mut message) = messages.next().unwrap_or_default().split_at(HEAD);
            if head != (into.len() as u64).to_le_bytes() {
                return Err(Broken::Other(format!(
                    "a bug in vaecf, please report it: rank {from} did not send the {} bytes that were due",
                    into.len()
                )));
            }
            let (first, rest) = into.split_at_mut(message.len());
            first.copy_from_slice(message);
            for piece in rest.chunks_mut(CHUNK) {
                message = messages.next().unwrap_or_default();
                piece.copy_from_slice(message);
            }
        }
        self.reuse(transfers);
        Ok(())
    }

    fn fail(&mut self, why: &str) {
        let mut word: Vec<u8> = why.bytes().take(WORD).collect();
        word.resize(WORD, 0);
        let others = (0..self.world).filter(|&rank| rank != self.rank);
        // Those that cannot be told are ended by the launcher.
        let mut told: Vec<_> =
            others.filter_map(|rank| Transfer::send(rank as c_int, Tag::Failure, word.clone()).ok()).collect();
        let end = Instant::now() + PARTING;
        while Instant::now() < end && !told.iter_mut().all(|word| word.is_done().unwrap_or(true)) {
            thread::sleep(Duration::from_millis(1));
        }
        self.alarm.raise(why);
    }

    fn leave(&mut self) {
        if let Some(failure) = self.failure.take() {
            failure.cancel();
        }
        // Finalizes.
        drop(self.universe.take());
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // To finalize is to wait for all, some of which have failed.
        mem::forget(self.universe.take());
    }
}

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "members say so what the tests read")]
mod tests {
    use std::{
        env,
        process::{Command, Output},
    };

    use super::*;

    /// Set for a process that is a member, to what it does.
    const PART: &str = "VAECF_TEST_MPI";

    /// More than it takes to hear of what has ended.
    const SOON: Duration = Duration::from_secs(20);

    /// Runs members as processes of MPI. None where there is no mpirun.
    fn mpirun(count: u32, part: &str) -> Option<Output> {
        let start = Instant::now();
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-np", &count.to_string()]);
        command.arg(env::current_exe().unwrap()).args(["mpi::tests::a_member", "--exact", "--nocapture"]);
        match command.env(PART, part).output() {
            Ok(output) => {
                assert!(start.elapsed() < SOON);
                Some(output)
            }
            Err(error) => {
                eprintln!("skipped: no mpirun here ({error})");
                None
            }
        }
    }

    fn said(output: &Output) -> String {
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What a member has after one of everything, in bytes.
    fn everything(group: &Group) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for count in [0, 1, 3, 5000, 2_500_001] {
            let number = |at: usize| ((at * 7919 + group.rank() as usize * 104_729) % 10_007) as f32 / 17.0 - 300.0;
            let mut values: Vec<f32> = (0..count).map(number).collect();
            group.sum(&mut values).unwrap();
            all.push(values.iter().flat_map(|value| value.to_le_bytes()).collect());
            // The longest takes several messages.
            let own: Vec<u8> = (0..count * 8 + group.rank() as usize).map(|at| (at % 251) as u8).collect();
            all.extend(group.all_gather(&own).unwrap());
            all.push(group.broadcast(&own).unwrap());
        }
        all
    }

    /// Nothing, unless another test has started this process as a member.
    #[test]
    fn a_member() {
        let Ok(part) = env::var(PART) else { return };
        let limit = if part == "silent" { Duration::from_secs(1) } else { Duration::from_secs(60) };
        let group = group(limit).unwrap().expect("several processes");
        let (rank, world) = (group.rank(), group.world());
        // Nobody ends before all of them have their places.
        let met = group.barrier();
        match &part[..] {
            "everything" => {
                let got = everything(&group);
                let same = thread::scope(|scope| {
                    let members: Vec<_> = vaecf_core::group::threads(world, limit)
                        .into_iter()
                        .map(|group| scope.spawn(move || (everything(&group), group.leave().unwrap()).0))
                        .collect();
                    members.into_iter().map(|member| member.join().unwrap()).collect::<Vec<_>>()[rank as usize] == got
                });
                assert!(same);
                eprintln!("done: {} of {world} by {}", group.member(rank), group.carrier().unwrap());
                group.leave().unwrap();
                end(0);
                return;
            }
            "fail" if rank == 1 => group.fail("the disk is full"),
            "silent" if rank == 1 => thread::sleep(Duration::from_secs(600)),
            "killed" if rank == 1 => {
                let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
            }
            _ => {}
        }
        let error = met.err().unwrap_or_else(|| {
            loop {
                if let Err(error) = group.sum(&mut vec![1.0_f32; 100_000]) {
                    break error;
                }
            }
        });
        drop(group);
        eprintln!("rank {rank} stopped: {error}");
        end(3);
    }

    #[test]
    fn members_have_what_threads_have() {
        for count in [2, 4] {
            let Some(output) = mpirun(count, "everything") else { return };
            let said = said(&output);
            assert!(output.status.success(), "{said}");
            for rank in 0..count {
                assert!(said.contains(&format!("done: rank {rank} (")), "{said}");
            }
            assert!(said.contains(&format!("of {count} by MPI")), "{said}");
        }
    }

    #[test]
    fn a_failure_is_everybodys() {
        let Some(output) = mpirun(3, "fail") else { return };
        let said = said(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        for rank in [0, 2] {
            let start = format!("rank {rank} stopped: stopped, because rank 1 (");
            let line = said.lines().find(|line| line.starts_with(&start)).unwrap_or_else(|| panic!("{said}"));
            assert!(line.ends_with("reports: the disk is full"), "{said}");
        }
    }

    #[test]
    fn one_that_is_silent_is_named() {
        let Some(output) = mpirun(3, "silent") else { return };
        let said = said(&output);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("stopped, because rank 1 (") && said.contains("not heard of for 1 seconds"), "{said}");
    }

    #[test]
    fn one_that_is_killed_ends_all() {
        let Some(output) = mpirun(3, "killed") else { return };
        assert!(!output.status.success());
    }

    #[test]
    fn a_process_alone_is_no_member() {
        if env::var_os("OMPI_COMM_WORLD_SIZE").is_none() {
            assert!(group(SOON).unwrap().is_none());
            end(1);
        }
    }
}
