//! What the compiler made of a kernel, and what must hold of it.

use std::{collections::BTreeMap, fmt, path::Path, process::Command};

use vaecf_cuda::blob::Kernel;

use crate::nvrtc::Compiled;

/// A kind of GPU that gets machine code of its own, and what one of its multiprocessors holds, from the table of
/// compute capabilities in NVIDIA's programming guide. Each has 65536 registers.
pub(crate) struct Gpu {
    pub(crate) target: &'static str,
    threads: u32,
    blocks: u32,
    shared: u32,
    /// Bytes of shared memory that the system keeps of every block.
    kept: u32,
}

const fn gpu(target: &'static str, threads: u32, blocks: u32, kib: u32, kept: u32) -> Gpu {
    Gpu { target, threads, blocks, shared: 1024 * kib, kept }
}

/// 90a and not 90, because only that has the products of a whole warp group.
pub(crate) const GPUS: [Gpu; 7] = [
    gpu("sm_75", 1024, 16, 64, 0),
    gpu("sm_80", 2048, 32, 164, 1024),
    gpu("sm_86", 1536, 16, 100, 1024),
    gpu("sm_89", 1536, 24, 100, 1024),
    gpu("sm_90a", 2048, 32, 228, 1024),
    gpu("sm_100", 2048, 32, 228, 1024),
    gpu("sm_120", 1536, 24, 100, 1024),
];

/// Kernels whose names begin so multiply matrices, and must do it on the tensor cores.
const PRODUCTS: [&str; 3] = ["gemm_f16", "gemm_bf16", "gemm_tf32"];

/// Instructions of the tensor cores: of a warp, of a warp group, and those of the 10th generation.
const TENSOR: [&str; 3] = ["HMMA", "HGMMA", "UTCHMMA"];

/// Instructions that read and write local memory, which is device memory by another name.
const LOCAL: [&str; 2] = ["LDL", "STL"];

/// Bytes of an instruction, since the 7th generation.
const INSTRUCTION: u32 = 16;

/// What can be wrong with a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    NoSpills,
    NoLocalMemory,
    NoLocalInstructions,
    TensorCores,
    LaunchBounds,
}

/// A rule that a function does not keep, in a sentence.
pub(crate) struct Breach {
    pub(crate) rule: Rule,
    pub(crate) text: String,
}

/// A function as the compiler's log and the disassembler tell of it.
#[derive(Default)]
pub(crate) struct Function {
    /// Whether it is a kernel, and no function that was not inlined.
    pub(crate) entry: bool,
    /// Threads in a block; 0 where it does not say.
    threads: u32,
    registers: u32,
    shared: u32,
    stack: u32,
    spilled: u32,
    instructions: u32,
    local: u32,
    tensor: u32,
}

/// The functions of a compiled program, by name.
pub(crate) fn functions(compiled: &Compiled, nvdisasm: &Path) -> Result<BTreeMap<String, Function>, String> {
    let mut functions = BTreeMap::new();
    read_log(&compiled.log, &mut functions);
    read_bounds(&compiled.ptx, &mut functions);
    read_instructions(&disassemble(&compiled.cubin, nvdisasm)?, &mut functions);
    match functions.values().all(|function| function.instructions > 0) && !functions.is_empty() {
        true => Ok(functions),
        false => Err("the compiler's log and the disassembly do not name the same functions".into()),
    }
}

/// The number before each of the words, such as 34 of `Used 34 registers`.
fn number(line: &str, after: &str) -> u32 {
    let before = line.find(after).map_or("", |at| line[..at].trim_end());
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// `Compiling entry function 'a' for 'sm_80'`, then `Used 34 registers, used 1 barriers, 1024 bytes smem`; and of
/// it and of each function it calls `Function properties for a`, then
/// `0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads`.
fn read_log(log: &str, functions: &mut BTreeMap<String, Function>) {
    let (mut kernel, mut function) = (String::new(), String::new());
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            functions.entry(kernel.clone()).or_default().entry = true;
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim().to_owned();
        } else if line.contains("bytes stack frame") {
            let function = functions.entry(function.clone()).or_default();
            function.stack = number(line, " bytes stack frame");
            function.spilled = number(line, " bytes spill stores") + number(line, " bytes spill loads");
        } else if line.contains(": Used ") {
            let kernel = functions.entry(kernel.clone()).or_default();
            kernel.registers = number(line, " registers");
            kernel.shared = number(line, " bytes smem");
        }
    }
}

/// `.entry a(`, then `.maxntid 256, 1, 1`.
fn read_bounds(ptx: &str, functions: &mut BTreeMap<String, Function>) {
    let mut kernel = "";
    for line in ptx.lines() {
        if let Some((_, rest)) = line.split_once(".entry ") {
            kernel = rest.split('(').next().unwrap_or_default().trim();
        } else if let Some(sizes) = line.strip_prefix(".maxntid ") {
            let threads = sizes.split(',').map(|size| size.trim().parse().unwrap_or(0)).product();
            functions.entry(kernel.to_owned()).or_default().threads = threads;
        }
    }
}

/// `.text.a:`, then an instruction in a line: `/*01d0*/  @!P0 HMMA.1688.F32.TF32 R8, R8, R12, RZ ;`.
fn read_instructions(sass: &str, functions: &mut BTreeMap<String, Function>) {
    let mut unknown = Function::default();
    let mut function = &mut unknown;
    for line in sass.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            function = functions.entry(name.to_owned()).or_default();
        } else if let Some((_, instruction)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
            let mut words = instruction.split_whitespace().skip_while(|word| word.starts_with('@'));
            let operation = words.next().unwrap_or_default().split('.').next().unwrap_or_default();
            function.instructions += 1;
            function.local += u32::from(LOCAL.contains(&operation));
            function.tensor += u32::from(TENSOR.contains(&operation));
        }
    }
}

fn disassemble(cubin: &[u8], nvdisasm: &Path) -> Result<String, String> {
    let file = tempfile::NamedTempFile::new().map_err(|e| format!("a temporary file: {e}"))?;
    std::fs::write(file.path(), cubin).map_err(|e| format!("{}: {e}", file.path().display()))?;
    let output = Command::new(nvdisasm).args(["-c", "-ndf"]).arg(file.path()).output();
    let output = output.map_err(|e| format!("{}: {e}", nvdisasm.display()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{}: {}", nvdisasm.display(), String::from_utf8_lossy(&output.stderr).trim_end())),
    }
}

impl Function {
    /// What the index of the file says of a kernel.
    pub(crate) fn kernel(&self, name: &str) -> Kernel {
        Kernel { name: name.into(), threads: self.threads, registers: self.registers, shared: self.shared }
    }

    /// The rules that it does not keep.
    pub(crate) fn breaches(&self, name: &str) -> Vec<Breach> {
        let product = self.entry && PRODUCTS.iter().any(|product| name.starts_with(product));
        let mut breaches = Vec::new();
        let mut demand = |kept: bool, rule, text: String| {
            if !kept {
                breaches.push(Breach { rule, text: format!("{name} {text}") });
            }
        };
        let (spilled, stack, local) = (self.spilled, self.stack, self.local);
        demand(
            spilled == 0,
            Rule::NoSpills,
            format!("spills {spilled} bytes of registers; let a thread hold less, or a block have fewer threads"),
        );
        demand(
            stack == 0,
            Rule::NoLocalMemory,
            format!("has {stack} bytes in local memory; index its arrays by constants, in unrolled loops"),
        );
        demand(local == 0, Rule::NoLocalInstructions, format!("has {local} instructions on local memory"));
        demand(
            !product || self.tensor > 0,
            Rule::TensorCores,
            "is named as a product on the tensor cores and has no instruction of theirs".into(),
        );
        demand(
            !self.entry || self.threads > 0,
            Rule::LaunchBounds,
            "does not say how many threads a block has; declare it with KERNEL".into(),
        );
        breaches
    }

    /// Blocks that a multiprocessor holds at once, where nothing is added to the shared memory at launch.
    fn blocks(&self, gpu: &Gpu) -> u32 {
        let warps = self.threads.div_ceil(32).max(1);
        // A warp gets registers by the 256, and warps come in fours.
        let by_registers = 65536 / (32 * self.registers.max(1)).next_multiple_of(256) / 4 * 4 / warps;
        let by_shared = match (self.shared + gpu.kept).next_multiple_of(128) {
            0 => gpu.blocks,
            shared => gpu.shared / shared,
        };
        by_registers.min(by_shared).min(gpu.blocks).min(gpu.threads / 32 / warps)
    }

    /// A line of the table.
    pub(crate) fn row(&self, stem: &str, name: &str, gpu: &Gpu) -> String {
        let blocks = self.blocks(gpu);
        let occupancy = 100 * blocks * self.threads.div_ceil(32) / (gpu.threads / 32);
        row([
            &stem,
            &name,
            &gpu.target,
            &self.registers,
            &self.shared,
            &self.threads,
            &blocks,
            &format!("{occupancy} %"),
            &self.tensor,
            &(INSTRUCTION * self.instructions),
        ])
    }
}

/// The table's head.
pub(crate) fn head() -> String {
    row([
        &"program",
        &"kernel",
        &"target",
        &"registers",
        &"shared",
        &"threads",
        &"blocks",
        &"occupancy",
        &"mma",
        &"bytes",
    ])
}

fn row(cells: [&dyn fmt::Display; 10]) -> String {
    let widths = [18, 30, 7, 9, 6, 7, 6, 9, 5, 7];
    let mut line = String::new();
    for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let cell = cell.to_string();
        line += &if at < 3 { format!("{cell:width$} ") } else { format!("{cell:>width$} ") };
    }
    line.trim_end().to_owned()
}
