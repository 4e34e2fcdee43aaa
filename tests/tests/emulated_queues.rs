//! What the CUDA backend's host side does on the emulator, where the order of queues is drawn at random: large
//! copies, uploads beside recordings, handles, marks, the schedule of the loss scale.
//!
//! Each seed has a child process, because the driver reads it once.

mod built;
mod cuda;

use std::{env, process::Command};

use libtest_mimic::{Arguments, Failed, Trial};
use vaecf_core::backend::{
    Backend, Buf, Curve, Graph, Host, HostMut, MARKS, Mat, Result, Role, ScaleState, StepParams,
};
use vaecf_cuda::{Cuda, Precision};

/// What the child is asked to do.
const CHECK: &str = "VAECF_QUEUES_CHECK";

type Check = fn(&mut Cuda) -> Result<()>;

/// With how many seeds each is run.
const CHECKS: [(&str, u32, Check); 6] = [
    ("copies larger than all pinned memory", 1, large_copies),
    ("uploads beside recordings", 6, uploads_beside_recordings),
    ("buffers freed under way", 6, freed_under_way),
    ("handles of every kind after free", 1, handles_after_free),
    ("thousands of marks", 2, thousands_of_marks),
    ("the loss scale doubles after 2,000 updates", 1, loss_scale_doubles),
];

fn main() {
    if cfg!(not(target_os = "linux")) {
        println!("skipped: the emulator is built on Linux only");
        return;
    }
    if let Ok(asked) = env::var(CHECK) {
        let (_, _, check) = CHECKS.into_iter().find(|(name, ..)| *name == asked).expect("a check");
        let mut cuda = cuda::open(built::emulator(), Precision::F16, true).expect("the stand-ins");
        return check(&mut cuda).expect(&asked);
    }
    let run = |name: &'static str, seed: u32| Trial::test(format!("{name}, seed {seed}"), move || child(name, seed));
    let trials = CHECKS.into_iter().flat_map(|(name, seeds, _)| (1..=seeds).map(move |seed| run(name, seed))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn child(name: &str, seed: u32) -> std::result::Result<(), Failed> {
    let mut command = Command::new(env::current_exe()?);
    let output = command.env(CHECK, name).env("VAECF_EMULATOR_SEED", seed.to_string()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

/// Exact in half precision, and different from piece to piece.
fn value(i: usize) -> f32 {
    (i % 2039) as f32 - 1000.0
}

/// Reads weights as operations do: a sum of nothing, and a bias.
struct Reader {
    x: Mat,
    none: Mat,
    y: Mat,
}

impl Reader {
    fn new(cuda: &mut Cuda, cols: u32) -> Result<Self> {
        let row = |buf, cols: u32| Mat { buf, rows: 1, cols, stride: cols.next_multiple_of(8), offset: 0 };
        Ok(Self {
            x: row(cuda.alloc(Role::Act, 8)?, 1),
            none: row(cuda.alloc(Role::Weight, cols.into())?, cols),
            y: row(cuda.alloc(Role::Act, cols.into())?, cols),
        })
    }

    fn read(&self, cuda: &mut Cuda, buf: Buf, offset: u64) -> Result<()> {
        cuda.linear(self.x, self.none, Mat { buf, offset, ..self.none }, Curve::Identity, self.y)
    }

    fn is(&self, cuda: &mut Cuda, wanted: impl Fn(usize) -> f32, when: &str) -> Result<()> {
        let mut got = vec![0.0; self.y.cols as usize];
        cuda.download(self.y.buf, 0, HostMut::F32(&mut got))?;
        let wrong = got.iter().enumerate().find(|&(i, x)| *x != wanted(i));
        assert!(wrong.is_none(), "{when}: {wrong:?}");
        Ok(())
    }
}

/// Pieces of 64 MiB, of which five may be under way.
const PIECE: usize = 64 << 20;

fn large_copies(cuda: &mut Cuda) -> Result<()> {
    let len = (5 * PIECE + PIECE / 2) / 4 + 40;
    let offset = 8;
    let indices: Vec<u32> = (0..len as u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
    let buf = cuda.alloc(Role::Index, (offset + len) as u64)?;
    cuda.upload(buf, offset as u64, Host::U32(&indices))?;
    let mut back = vec![7; len];
    cuda.download(buf, offset as u64, HostMut::U32(&mut back))?;
    assert!(indices == back, "indices are others after the way there and back");
    cuda.free(buf);
    drop((indices, back));

    // The master in single precision, and the copy in half that operations read.
    let values: Vec<f32> = (0..len).map(value).collect();
    let buf = cuda.alloc(Role::Weight, (offset + len) as u64)?;
    cuda.upload(buf, offset as u64, Host::F32(&values))?;
    let reader = Reader::new(cuda, 4096)?;
    for around in (0..).map(|piece| piece * PIECE / 4).take_while(|&at| at < len).chain([len]) {
        let from = around.saturating_sub(2048).min(len - 4096) & !7;
        reader.read(cuda, buf, (offset + from) as u64)?;
        reader.is(cuda, |i| values[from + i], &format!("half copies from {from} on"))?;
    }
    let mut back = vec![0.0_f32; len];
    cuda.download(buf, offset as u64, HostMut::F32(&mut back))?;
    assert!(values == back, "weights are others after the way there and back");
    cuda.free(buf);

    let half = &values[..PIECE / 2 + 100_000];
    let buf = cuda.alloc(Role::Act, half.len() as u64)?;
    cuda.upload(buf, 0, Host::F32(half))?;
    cuda.download(buf, 0, HostMut::F32(&mut back[..half.len()]))?;
    assert!(half == &back[..half.len()], "activations are others after the way there and back");
    cuda.free(buf);
    Ok(())
}

/// Enough that an upload takes the second queue, in half precision, too.
const LONG: u32 = 40_000;

fn record(cuda: &mut Cuda, reader: &Reader, buf: Buf) -> Result<Graph> {
    cuda.capture_begin()?;
    reader.read(cuda, buf, 0)?;
    cuda.capture_end()
}

/// Two parts of the data, as training streams them: one is replayed on while the other is on its way.
fn uploads_beside_recordings(cuda: &mut Cuda) -> Result<()> {
    let part = |turn: usize| move |i: usize| value(i + 37 * turn);
    let data = |turn| (0..LONG as usize).map(part(turn)).collect::<Vec<f32>>();
    let bufs = [cuda.alloc(Role::Weight, LONG.into())?, cuda.alloc(Role::Weight, LONG.into())?];
    let readers = [Reader::new(cuda, LONG)?, Reader::new(cuda, LONG)?];
    let graphs = [record(cuda, &readers[0], bufs[0])?, record(cuda, &readers[1], bufs[1])?];
    cuda.upload(bufs[0], 0, Host::F32(&data(0)))?;
    for turn in 0..10 {
        let (this, next) = (turn % 2, (turn + 1) % 2);
        cuda.upload(bufs[next], 0, Host::F32(&data(turn + 1)))?;
        cuda.replay(graphs[this])?;
        if turn % 3 == 0 {
            // What the replay reads is not overwritten before it has.
            cuda.upload(bufs[this], 0, Host::F32(&data(99)))?;
        }
        readers[this].is(cuda, part(turn), &format!("turn {turn}"))?;
    }
    Ok(())
}

/// What is freed is still read by the work before; what is allocated in its place is zero.
fn freed_under_way(cuda: &mut Cuda) -> Result<()> {
    let reader = Reader::new(cuda, LONG)?;
    let values: Vec<f32> = (0..LONG as usize).map(value).collect();
    for turn in 0..5 {
        let buf = cuda.alloc(Role::Weight, LONG.into())?;
        cuda.upload(buf, 0, Host::F32(&values))?;
        reader.read(cuda, buf, 0)?;
        cuda.free(buf);
        let again = cuda.alloc(Role::Weight, LONG.into())?;
        reader.is(cuda, value, &format!("freed in turn {turn}"))?;
        reader.read(cuda, again, 0)?;
        reader.is(cuda, |_| 0.0, &format!("allocated in turn {turn}"))?;
        cuda.upload(again, 0, Host::F32(&values))?;
        cuda.free(again);
    }
    cuda.sync()
}

fn handles_after_free(cuda: &mut Cuda) -> Result<()> {
    let roles = [Role::Weight, Role::Grad, Role::Moment, Role::Act, Role::Value, Role::Index, Role::Step, Role::Scale];
    for role in roles {
        let buf = cuda.alloc(role, 8)?;
        cuda.free(buf);
        cuda.free(buf);
        let other = cuda.alloc(role, 8)?;
        assert_ne!(buf, other, "{role:?}");
        let (step, mut scale): (StepParams, _) = (bytemuck::Zeroable::zeroed(), ScaleState::default());
        let uploads = [Host::F32(&[1.0]), Host::F64(&[1.0]), Host::U32(&[1]), Host::Step(&step), Host::Scale(&scale)];
        for from in uploads {
            assert!(cuda.upload(buf, 0, from).is_err(), "an upload to {role:?}");
        }
        let (mut a, mut b, mut c) = ([0.0], [0.0], [0]);
        let downloads = [HostMut::F32(&mut a), HostMut::F64(&mut b), HostMut::U32(&mut c), HostMut::Scale(&mut scale)];
        for to in downloads {
            assert!(cuda.download(buf, 0, to).is_err(), "a download of {role:?}");
        }
        cuda.free(other);
    }
    Ok(())
}

fn thousands_of_marks(cuda: &mut Cuda) -> Result<()> {
    let reader = Reader::new(cuda, 64)?;
    let mut marks = Vec::new();
    for turn in 0..3 * MARKS {
        marks.push(cuda.mark()?);
        if turn % 1000 == 0 {
            reader.read(cuda, reader.none.buf, 0)?;
        }
    }
    let latest = &marks[2 * MARKS..];
    let whole = cuda.seconds(latest[0], latest[MARKS - 1])?;
    let mut sum = 0.0;
    for pair in latest.windows(2) {
        let seconds = cuda.seconds(pair[0], pair[1])?;
        assert!(seconds >= 0.0, "marks are out of order");
        sum += seconds;
    }
    assert!((sum - whole).abs() <= 1e-3 + 0.1 * whole, "{sum} seconds in parts, and {whole} in all");
    assert!(cuda.seconds(marks[2 * MARKS - 1], latest[0]).is_err(), "a mark before the latest is known");
    Ok(())
}

fn loss_scale_doubles(cuda: &mut Cuda) -> Result<()> {
    let [w, dw, m, v] = [Role::Weight, Role::Grad, Role::Moment, Role::Moment].map(|role| cuda.alloc(role, 8));
    let (w, dw, m, v, step, scale) = (w?, dw?, m?, v?, cuda.alloc(Role::Step, 1)?, cuda.alloc(Role::Scale, 1)?);
    let params = StepParams { update: 1, eps: 1.0, correction1: 1.0, correction2: 1.0, ..bytemuck::Zeroable::zeroed() };
    cuda.upload(step, 0, Host::Step(&params))?;
    let mut state = ScaleState { scale: 4.0, good: 1_998, skipped: 0, finite: 1 };
    cuda.upload(scale, 0, Host::Scale(&state))?;
    for wanted in [(4.0, 1_999), (8.0, 0), (8.0, 1)] {
        cuda.adam(w, dw, m, v, 8, 0, step, scale)?;
        cuda.download(scale, 0, HostMut::Scale(&mut state))?;
        assert_eq!((state.scale, state.good), wanted);
    }
    Ok(())
}
