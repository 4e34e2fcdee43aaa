//! The text of the kernels of the three products: one template for all of them and for every size of tile.
//!
//! A workgroup makes one tile of the output. It goes along `k` in steps: its threads fetch what the next step needs
//! of both operands into registers, in blocks of 4 by 4, while they multiply what the last step has left in workgroup
//! memory. There, both operands lie with `k` as rows, so an operand that has `k` along its rows in memory is turned
//! over on the way.
//!
//! **Every variant gives the same bits.** Each number of the output is one sum over ascending `k`, in one register.
//! What lies outside of `k`'s range counts as -0 times 0, and adding -0 changes nothing, not even the sign of a zero.

use std::fmt::Write;

/// `writeln!` to a text cannot fail.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {{
        let _ = writeln!($out, $($text)*);
    }};
}
pub(super) use line;

/// Which of the three products of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    /// `y[m, n] = curve(x[m, k] w[k, n] + b[n])`.
    Forward,
    /// `dw[m, n] = x[k, m]^T dy[k, n]`, in single precision.
    GradWeight,
    /// `dx[m, n] = (dy[m, k] w[n, k]^T) * slope(x[m, n])`.
    GradInput,
}

impl Which {
    /// All three.
    pub(crate) const ALL: [Self; 3] = [Self::Forward, Self::GradWeight, Self::GradInput];

    /// Whether `k` runs along the rows of the two operands.
    pub(crate) fn turned(self) -> [bool; 2] {
        match self {
            Self::Forward => [true, false],
            Self::GradWeight => [false, false],
            Self::GradInput => [true, true],
        }
    }
}

/// Where the sums of a kernel go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Ends {
    /// Into the output, finished.
    Finished,
    /// To parts in single precision, which [`join`] adds up.
    Part,
}

/// How a kernel shares a product among workgroups and threads. All are powers of two, and multiples of four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Variant {
    /// Rows of the tile that a workgroup makes.
    pub(crate) tile_m: u32,
    /// Columns of that tile.
    pub(crate) tile_n: u32,
    /// Step along `k`.
    pub(crate) tile_k: u32,
    /// Rows of one thread.
    pub(crate) thread_m: u32,
    /// Columns of one thread.
    pub(crate) thread_n: u32,
}

impl Variant {
    /// Named in the order of the fields.
    pub(crate) const fn new(tile_m: u32, tile_n: u32, tile_k: u32, thread_m: u32, thread_n: u32) -> Self {
        Self { tile_m, tile_n, tile_k, thread_m, thread_n }
    }

    /// Threads of a workgroup.
    pub(crate) fn threads(self) -> u32 {
        (self.tile_m / self.thread_m) * (self.tile_n / self.thread_n)
    }

    /// Bytes of workgroup memory.
    pub(crate) fn memory(self) -> u32 {
        (self.tile_m + self.tile_n) * self.tile_k * 4
    }
}

/// The kernel that adds up parts; like all of these texts it goes after what all kernels have.
pub(crate) fn join(which: Which) -> String {
    head(&["parts: array<vec4<f32>>"], which, Ends::Finished) + include_str!("../../shaders/product_join.wgsl")
}

/// What the kernels of a product have in common: their parameters, the buffers that they read, here the operands, and
/// what becomes of a sum.
pub(crate) fn head(operands: &[&str], which: Which, ends: Ends) -> String {
    let (beside, out, finish) = match (ends, which) {
        (Ends::Part, _) => (false, "vec4<f32>", include_str!("../../shaders/product_part.wgsl")),
        (_, Which::Forward) => (true, "Four", include_str!("../../shaders/product_forward.wgsl")),
        (_, Which::GradWeight) => (false, "vec4<f32>", include_str!("../../shaders/product_grad_weight.wgsl")),
        (_, Which::GradInput) => (true, "Four", include_str!("../../shaders/product_grad_input.wgsl")),
    };
    let mut text = include_str!("../../shaders/product.wgsl").to_owned();
    let reads = operands.iter().chain(beside.then_some(&"beside: array<Four>"));
    let mut count = 0;
    for read in reads {
        line!(text, "@group(1) @binding({count}) var<storage, read> {read};");
        count += 1;
    }
    line!(text, "@group(1) @binding({count}) var<storage, read_write> c: array<{out}>;");
    text + finish
}

/// The blocks of 4 by 4 numbers of one operand that a step needs.
struct Blocks {
    /// The operand's name; its place and stride are called after it.
    operand: &'static str,
    /// Whether `k` runs along the rows.
    turned: bool,
    /// Fours of the tile's side.
    side: u32,
    /// Where the operand begins in workgroup memory, in fours.
    first: u32,
    /// Blocks, and those of the operand before.
    count: u32,
    skipped: u32,
    /// The number of the operand's tile, and rows or columns of the output that there are.
    tile: &'static str,
    /// See `tile`.
    end: &'static str,
    /// What a number outside of the range of `k` counts as.
    outside: &'static str,
}

/// The text of one kernel; goes after the text of the storage and of what is common.
pub(crate) fn product(which: Which, ends: Ends, variant: Variant) -> String {
    Template::new(which, variant).text(which, ends)
}

struct Template {
    variant: Variant,
    threads: u32,
    operands: [Blocks; 2],
}

impl Template {
    fn new(which: Which, variant: Variant) -> Self {
        let [a_turned, b_turned] = which.turned();
        let Variant { tile_m, tile_n, tile_k, .. } = variant;
        let (high, wide, deep) = (tile_m / 4, tile_n / 4, tile_k / 4);
        let a = Blocks {
            operand: "a",
            turned: a_turned,
            side: high,
            first: 0,
            count: high * deep,
            skipped: 0,
            tile: "tile.y",
            end: "p.m",
            outside: "-0.0",
        };
        let b = Blocks {
            operand: "b",
            turned: b_turned,
            side: wide,
            first: high * tile_k,
            count: wide * deep,
            skipped: high * deep,
            tile: "tile.z",
            end: "p.n",
            outside: "0.0",
        };
        Self { variant, threads: variant.threads(), operands: [a, b] }
    }

    fn text(&self, which: Which, ends: Ends) -> String {
        let Variant { tile_m, tile_n, tile_k, .. } = self.variant;
        let (threads, fours) = (self.threads, (tile_m + tile_n) * tile_k / 4);
        let mut out = head(&["a: array<Four>", "b: array<Four>"], which, ends);
        let s = &mut out;
        line!(s, "var<workgroup> staged: array<vec4<f32>, {fours}>;");
        line!(s, "@compute @workgroup_size({threads})");
        line!(s, "fn main(");
        line!(s, "    @builtin(workgroup_id) group: vec3<u32>,");
        line!(s, "    @builtin(num_workgroups) groups: vec3<u32>,");
        line!(s, "    @builtin(local_invocation_index) thread: u32,");
        line!(s, ") {{");
        line!(s, "let number = group_number(group, groups);");
        line!(s, "if (number >= p.groups) {{ return; }}");
        line!(s, "let tile = place(number, (p.m + {}u) / {tile_m}u, (p.n + {}u) / {tile_n}u);", tile_m - 1, tile_n - 1);
        line!(s, "let k_from = p.k_from + tile.x * p.k_each;");
        line!(s, "let k_to = min(k_from + p.k_each, p.k);");
        self.places(s);
        self.sums(s);
        line!(s, "let first = k_from & ~3u;");
        line!(s, "for (var k = first; ; k += {tile_k}u) {{");
        line!(s, "let more = k < k_to;");
        line!(s, "if (more) {{");
        self.fetch(s);
        line!(s, "}}");
        line!(s, "if (k > first) {{");
        self.multiply(s);
        line!(s, "}}");
        line!(s, "if (!more) {{ break; }}");
        line!(s, "workgroupBarrier();");
        self.stage(s);
        line!(s, "workgroupBarrier();");
        line!(s, "}}");
        self.store(s);
        line!(s, "}}");
        out
    }

    /// Writes a piece of text for each block that a thread fetches: those of both operands lie end to end.
    fn blocks(&self, s: &mut String, each: impl Fn(&mut String, u32, &Blocks)) {
        let [a, b] = &self.operands;
        for i in 0..(a.count + b.count).div_ceil(self.threads) {
            let (from, to) = (i * self.threads, (i + 1) * self.threads);
            let whole = to <= a.count + b.count;
            if to <= a.count {
                each(s, i, a);
            } else if from >= a.count && whole {
                each(s, i, b);
            } else if from >= a.count {
                line!(s, "if (thread < {}u) {{", a.count + b.count - from);
                each(s, i, b);
                line!(s, "}}");
            } else {
                line!(s, "if (thread < {}u) {{", a.count - from);
                each(s, i, a);
                match whole {
                    true => line!(s, "}} else {{"),
                    false => line!(s, "}} else if (thread < {}u) {{", a.count + b.count - from),
                }
                each(s, i, b);
                line!(s, "}}");
            }
        }
    }

    /// Registers for the blocks of a thread, and where each block lies in memory and in workgroup memory.
    fn places(&self, s: &mut String) {
        let blocks: u32 = self.operands.iter().map(|blocks| blocks.count).sum();
        for i in 0..blocks.div_ceil(self.threads) {
            line!(s, "var deep_{i} = 0u;");
            line!(s, "var to_{i} = 0u;");
            for j in 0..4 {
                line!(s, "var from_{i}_{j} = 0u;");
                line!(s, "var got_{i}_{j} = vec4<f32>();");
            }
        }
        self.blocks(s, |s, i, blocks| {
            let Blocks { operand, turned, side, first, skipped, tile, end, .. } = blocks;
            let deep = self.variant.tile_k / 4;
            line!(s, "{{");
            line!(s, "let block = thread + {}u - {skipped}u;", i * self.threads);
            if *turned {
                // Neighbours read along a row.
                line!(s, "let side = block / {deep}u;");
                line!(s, "deep_{i} = block % {deep}u;");
                line!(s, "let row = 4u * ({tile} * {side}u + side);");
                for j in 0..4 {
                    line!(s, "from_{i}_{j} = p.{operand} + clamp(row + {j}u, {end}_from, {end} - 1u) * p.{operand}_stride + deep_{i};");
                }
            } else {
                line!(s, "let side = block % {side}u;");
                line!(s, "deep_{i} = block / {side}u;");
                line!(s, "let col = min({tile} * {side}u + side, ({end} - 1u) / 4u);");
                for j in 0..4 {
                    line!(s, "from_{i}_{j} = p.{operand} + (4u * deep_{i} + {j}u) * p.{operand}_stride + col;");
                }
            }
            line!(s, "to_{i} = {first}u + 4u * deep_{i} * {side}u + {};", self.swapped(blocks, "side", &format!("deep_{i}")));
            line!(s, "}}");
        });
    }

    /// Where a four of a row is in workgroup memory: those of an operand that is turned over change places, so that
    /// the threads of one store meet different banks.
    fn swapped(&self, blocks: &Blocks, side: &str, deep: &str) -> String {
        let spread = (32 / self.variant.tile_k).max(1);
        match blocks.turned {
            true => format!("({side} ^ (({spread}u * {deep}) & {}u))", blocks.side - 1),
            false => side.to_owned(),
        }
    }

    /// One zero for each four of the output that a thread makes.
    fn sums(&self, s: &mut String) {
        for i in 0..self.variant.thread_m {
            for j in 0..self.variant.thread_n / 4 {
                line!(s, "var sum_{i}_{j} = vec4<f32>();");
            }
        }
    }

    /// Fetches the step at `k`: without a check where it lies within the range.
    fn fetch(&self, s: &mut String) {
        line!(s, "if (k >= k_from && k + {}u <= k_to) {{", self.variant.tile_k);
        self.blocks(s, |s, i, Blocks { operand, turned, .. }| {
            for j in 0..4 {
                match turned {
                    true => line!(s, "got_{i}_{j} = wide({operand}[from_{i}_{j} + k / 4u]);"),
                    false => line!(s, "got_{i}_{j} = wide({operand}[from_{i}_{j} + k * p.{operand}_stride]);"),
                }
            }
        });
        line!(s, "}} else {{");
        self.blocks(s, |s, i, Blocks { operand, turned, outside, .. }| {
            for j in 0..4 {
                line!(s, "got_{i}_{j} = vec4<f32>({outside});");
            }
            if *turned {
                line!(s, "if (k + 4u * deep_{i} < k_to) {{");
                line!(s, "let at = vec4<u32>(k + 4u * deep_{i}) + vec4<u32>(0u, 1u, 2u, 3u);");
                line!(s, "let inside = (at >= vec4<u32>(k_from)) & (at < vec4<u32>(k_to));");
                for j in 0..4 {
                    line!(s, "got_{i}_{j} = select(got_{i}_{j}, wide({operand}[from_{i}_{j} + k / 4u]), inside);");
                }
                line!(s, "}}");
            } else {
                for j in 0..4 {
                    let at = format!("k + 4u * deep_{i} + {j}u");
                    line!(s, "if ({at} >= k_from && {at} < k_to) {{");
                    line!(s, "got_{i}_{j} = wide({operand}[from_{i}_{j} + k * p.{operand}_stride]);");
                    line!(s, "}}");
                }
            }
        });
        line!(s, "}}");
    }

    /// Puts what was fetched into workgroup memory.
    fn stage(&self, s: &mut String) {
        self.blocks(s, |s, i, Blocks { turned, side, .. }| {
            for (j, lane) in ["x", "y", "z", "w"].into_iter().enumerate() {
                let at = format!("to_{i} + {}u", j as u32 * side);
                match turned {
                    true => line!(
                        s,
                        "staged[{at}] = vec4<f32>(got_{i}_0.{lane}, got_{i}_1.{lane}, got_{i}_2.{lane}, got_{i}_3.{lane});"
                    ),
                    false => line!(s, "staged[{at}] = got_{i}_{j};"),
                }
            }
        });
    }

    /// Multiplies what is in workgroup memory. A thread's fours lie as far apart as there are threads, so that
    /// neighbours read neighbours.
    fn multiply(&self, s: &mut String) {
        let Variant { tile_k, thread_m, thread_n, .. } = self.variant;
        let [a, b] = &self.operands;
        let [high, wide] = self.grid();
        line!(s, "for (var deep = 0u; deep < {}u; deep++) {{", tile_k / 4);
        for i in 0..thread_m / 4 {
            let at = format!("(thread / {wide}u + {}u)", i * high);
            line!(s, "let a_{i} = 4u * deep * {}u + {};", a.side, self.swapped(a, &at, "deep"));
        }
        for j in 0..thread_n / 4 {
            let at = format!("(thread % {wide}u + {}u)", j * wide);
            line!(s, "let b_{j} = {}u + 4u * deep * {}u + {};", b.first, b.side, self.swapped(b, &at, "deep"));
        }
        for k in 0..4 {
            line!(s, "{{");
            for i in 0..thread_m / 4 {
                line!(s, "let x_{i} = staged[a_{i} + {}u];", k * a.side);
            }
            for j in 0..thread_n / 4 {
                line!(s, "let y_{j} = staged[b_{j} + {}u];", k * b.side);
            }
            for i in 0..thread_m {
                let x = format!("x_{}.{}", i / 4, ["x", "y", "z", "w"][i as usize % 4]);
                for j in 0..thread_n / 4 {
                    line!(s, "sum_{i}_{j} = fma(vec4<f32>({x}), y_{j}, sum_{i}_{j});");
                }
            }
            line!(s, "}}");
        }
        line!(s, "}}");
    }

    /// Hands the sums on, row by row.
    fn store(&self, s: &mut String) {
        let Variant { tile_m, tile_n, thread_m, thread_n, .. } = self.variant;
        let [high, wide] = self.grid();
        line!(s, "let top = {tile_m}u * tile.y + 4u * (thread / {wide}u);");
        line!(s, "let left = {}u * tile.z + thread % {wide}u;", tile_n / 4);
        for i in 0..thread_m {
            let row = i / 4 * 4 * high + i % 4;
            line!(s, "if (top + {row}u >= p.m_from && top + {row}u < p.m) {{");
            for j in 0..thread_n / 4 {
                line!(s, "if (4u * (left + {}u) < p.n) {{", j * wide);
                line!(s, "finish(tile.x, top + {row}u, left + {}u, sum_{i}_{j});", j * wide);
                line!(s, "}}");
            }
            line!(s, "}}");
        }
    }

    /// Rows and columns of threads.
    fn grid(&self) -> [u32; 2] {
        let Variant { tile_m, tile_n, thread_m, thread_n, .. } = self.variant;
        [tile_m / thread_m, tile_n / thread_n]
    }
}
