//! The device's own matrices ("cooperative" ones), which multiply halves many times faster than its threads do.
//!
//! They are new, and drivers are known to get them wrong. So they are used after a test on a device of its own has
//! found that they give what the template's kernels give. Their sums are rounded in their own way: whether they make a
//! product follows from its sizes alone.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
    sync::{Mutex, PoisonError},
};

use vaecf_core::backend::Fault;
use wgpu::{CooperativeScalarType, Features};

use super::{
    Ends, Maker, Shape, Which,
    template::{Variant, head, line},
    trial::Trial,
};
use crate::{Precision, context::Context};

/// How the matrices of a device are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    /// Rows, columns and depth of one.
    side: u32,
    /// Threads that hold one together.
    subgroup: u32,
    /// They are loaded from memory that holds fours, which is written faster than one that holds single numbers.
    fours: bool,
    /// Threads and bytes that a workgroup may have.
    threads: u32,
    memory: u32,
}

impl fmt::Display for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cooperative matrices of {0}x{0}x{0}", self.side)
    }
}

/// A kernel with matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Matrices {
    units: Units,
    large: bool,
}

impl Units {
    /// The ways of using a device's matrices that may be right, the best first.
    fn candidates(context: &Context) -> Vec<Self> {
        let (info, limits) = (context.adapter.get_info(), &context.limits);
        let needed = Features::EXPERIMENTAL_COOPERATIVE_MATRIX | Features::SHADER_F16 | Features::SUBGROUP;
        if !context.device.features().contains(needed) {
            return Vec::new();
        }
        // Metal has matrices of 8, which it loads from single numbers.
        let metal = info.backend == wgpu::Backend::Metal;
        let listed = context.adapter.cooperative_matrix_properties();
        let (half, single) = (CooperativeScalarType::F16, CooperativeScalarType::F32);
        let sides = [16, 8].into_iter().filter(|&side| {
            let is = |m: &wgpu::CooperativeMatrixProperties| {
                [m.m_size, m.n_size, m.k_size] == [side; 3] && (m.ab_type, m.cr_type) == (half, single)
            };
            !(metal && side == 16) && listed.iter().any(is)
        });
        let mut subgroups = vec![info.subgroup_min_size, info.subgroup_max_size];
        subgroups.dedup();
        let ways = if metal { &[false][..] } else { &[true, false] };
        let of = |side| {
            let sizes = subgroups.clone();
            ways.iter().flat_map(move |&fours| sizes.clone().into_iter().map(move |subgroup| (side, fours, subgroup)))
        };
        sides
            .flat_map(of)
            .map(|(side, fours, subgroup)| Self {
                side,
                subgroup,
                fours,
                threads: limits.max_compute_invocations_per_workgroup.min(256),
                memory: limits.max_compute_workgroup_storage_size,
            })
            .filter(|&units| Matrices { units, large: false }.fits())
            .collect()
    }

    /// What makes a product of these sizes, if matrices should.
    pub(crate) fn matrices(self, shape: Shape) -> Option<Matrices> {
        if shape.m.min(shape.n).min(shape.k) < 32 {
            return None;
        }
        let large = Matrices { units: self, large: true };
        let worth_it = self.side == 16 && shape.m.min(shape.n) > 96 && large.fits();
        Some(if worth_it { large } else { Matrices { large: false, ..large } })
    }
}

/// The part of an operand that a step stages: rows of fours, with some room behind each, so that the rows of one matrix
/// lie in different banks.
struct Staged {
    operand: &'static str,
    /// Whether the sums run along its rows.
    turned: bool,
    /// Rows, and fours of a row.
    rows: u32,
    fours: u32,
    /// Where it begins.
    first: u32,
    tile: &'static str,
    end: &'static str,
}

impl Staged {
    const ROOM: u32 = 2;

    fn stride(&self) -> u32 {
        self.fours + Self::ROOM
    }
}

impl Matrices {
    /// Rows and columns that a workgroup makes.
    pub(crate) fn tile(self) -> [u32; 2] {
        [if self.large { 128 } else { 64 }; 2]
    }

    #[cfg(test)]
    pub(crate) fn is_for_metal(self) -> bool {
        self.units.side == 8 && !self.units.fours
    }

    /// Step along the sums.
    fn deep(self) -> u32 {
        2 * self.units.side
    }

    /// Subgroups of a workgroup, in rows and columns.
    fn subgroups(self) -> [u32; 2] {
        [if self.large { 4 } else { 2 }, 2]
    }

    fn threads(self) -> u32 {
        self.subgroups().iter().product::<u32>() * self.units.subgroup
    }

    /// Matrices of the output that a subgroup makes, in rows and columns.
    fn each(self) -> [u32; 2] {
        let ([m, n], [high, wide]) = (self.tile(), self.subgroups());
        [m / high / self.units.side, n / wide / self.units.side]
    }

    /// Fours of one matrix.
    fn fours(self) -> u32 {
        self.units.side * self.units.side / 4
    }

    fn staged(self, which: Which) -> [Staged; 2] {
        let ([m, n], deep) = (self.tile(), self.deep());
        let staged = |operand, turned, side: u32, first, tile, end| {
            let (rows, fours) = if turned { (side, deep / 4) } else { (deep, side / 4) };
            Staged { operand, turned, rows, fours, first, tile, end }
        };
        let [a_turned, b_turned] = which.turned();
        let a = staged("a", a_turned, m, 0, "tile.y", "p.m");
        let b = staged("b", b_turned, n, a.rows * a.stride(), "tile.z", "p.n");
        [a, b]
    }

    /// Bytes of workgroup memory: what is staged, and one matrix of sums for each subgroup.
    fn memory(self, which: Which) -> u32 {
        let staged: u32 = self.staged(which).iter().map(|staged| staged.rows * staged.stride() * 8).sum();
        staged + self.subgroups().iter().product::<u32>() * self.fours() * 16
    }

    fn fits(self) -> bool {
        self.threads() <= self.units.threads && Which::ALL.iter().all(|&which| self.memory(which) <= self.units.memory)
    }

    /// The whole text of a kernel.
    pub(crate) fn text(self, common: &str, which: Which, ends: Ends) -> String {
        let [a, b] = self.staged(which);
        let ([m, n], deep, threads) = (self.tile(), self.deep(), self.threads());
        let mut out = format!("enable f16;\nenable wgpu_cooperative_matrix;\n{common}");
        out += &head(&["a: array<vec4<f16>>", "b: array<vec4<f16>>"], which, ends);
        let s = &mut out;
        let staged = b.first + b.rows * b.stride();
        let sums = self.subgroups().iter().product::<u32>() * self.fours();
        if self.units.fours {
            line!(s, "var<workgroup> staged: array<vec4<f16>, {staged}>;");
            line!(s, "var<workgroup> sums: array<vec4<f32>, {sums}>;");
            line!(s, "fn stage(at: u32, x: vec4<f16>) {{ staged[at] = x; }}");
            line!(s, "fn summed(at: u32) -> vec4<f32> {{ return sums[at]; }}");
        } else {
            line!(s, "var<workgroup> staged: array<f16, {}>;", 4 * staged);
            line!(s, "var<workgroup> sums: array<f32, {}>;", 4 * sums);
            line!(s, "fn stage(at: u32, x: vec4<f16>) {{");
            line!(s, "staged[4u * at] = x.x;");
            line!(s, "staged[4u * at + 1u] = x.y;");
            line!(s, "staged[4u * at + 2u] = x.z;");
            line!(s, "staged[4u * at + 3u] = x.w;");
            line!(s, "}}");
            line!(s, "fn summed(at: u32) -> vec4<f32> {{");
            line!(s, "return vec4<f32>(sums[4u * at], sums[4u * at + 1u], sums[4u * at + 2u], sums[4u * at + 3u]);");
            line!(s, "}}");
        }
        line!(s, "@compute @workgroup_size({threads})");
        line!(s, "fn main(");
        line!(s, "    @builtin(workgroup_id) group: vec3<u32>,");
        line!(s, "    @builtin(num_workgroups) groups: vec3<u32>,");
        line!(s, "    @builtin(local_invocation_index) thread: u32,");
        line!(s, "    @builtin(subgroup_id) subgroup: u32,");
        line!(s, ") {{");
        // As `group_number`: the compiler must see that this is the same for a whole workgroup.
        line!(s, "let number = group.x + groups.x * (group.y + groups.y * group.z);");
        line!(s, "if (number >= p.groups) {{ return; }}");
        line!(s, "let tile = place(number, (p.m + {}u) / {m}u, (p.n + {}u) / {n}u);", m - 1, n - 1);
        line!(s, "let k_from = p.k_from + tile.x * p.k_each;");
        line!(s, "let k_to = min(k_from + p.k_each, p.k);");
        let [high, wide] = self.subgroups();
        // Where there are more subgroups than it takes, some do what others do.
        line!(s, "let one = subgroup % {}u;", high * wide);
        line!(s, "let top = one / {wide}u * {}u;", m / high);
        line!(s, "let left = one % {wide}u * {}u;", n / wide);
        let [rows, cols] = self.each();
        for (i, j) in pairs(rows, cols) {
            line!(s, "var sum_{i}_{j} = coop_mat{0}x{0}<f32, C>();", self.units.side);
        }
        for staged in [&a, &b] {
            self.places(s, staged);
        }
        line!(s, "let first = k_from & ~3u;");
        for staged in [&a, &b] {
            self.fetch(s, staged, "first");
        }
        line!(s, "for (var k = first; k < k_to; k += {deep}u) {{");
        line!(s, "workgroupBarrier();");
        for staged in [&a, &b] {
            self.stage(s, staged);
        }
        line!(s, "workgroupBarrier();");
        line!(s, "let next = k + {deep}u;");
        for staged in [&a, &b] {
            self.fetch(s, staged, "next");
        }
        self.multiply(s, &a, &b);
        line!(s, "}}");
        self.store(s);
        line!(s, "}}");
        out
    }

    /// Fours of an operand that a thread fetches.
    fn fetched(self, staged: &Staged) -> u32 {
        (staged.rows * staged.fours).div_ceil(self.threads())
    }

    /// Writes a piece of text for each four that a thread fetches.
    fn each_fetched(self, s: &mut String, staged: &Staged, each: impl Fn(&mut String, u32)) {
        for i in 0..self.fetched(staged) {
            let some = (i + 1) * self.threads() > staged.rows * staged.fours;
            if some {
                line!(s, "if (thread + {}u < {}u) {{", i * self.threads(), staged.rows * staged.fours);
            }
            each(s, i);
            if some {
                line!(s, "}}");
            }
        }
    }

    /// Registers for what a thread fetches, and where it lies.
    fn places(self, s: &mut String, staged: &Staged) {
        let Staged { operand: x, turned, rows, fours, tile, end, .. } = staged;
        for i in 0..self.fetched(staged) {
            line!(s, "var got_{x}_{i} = vec4<f16>();");
            line!(s, "let row_{x}_{i} = (thread + {}u) / {fours}u;", i * self.threads());
            line!(s, "let four_{x}_{i} = (thread + {}u) % {fours}u;", i * self.threads());
            match turned {
                true => {
                    let row = format!("clamp({tile} * {rows}u + row_{x}_{i}, {end}_from, {end} - 1u)");
                    line!(s, "let from_{x}_{i} = p.{x} + {row} * p.{x}_stride + four_{x}_{i};");
                }
                false => {
                    let four = format!("min({tile} * {fours}u + four_{x}_{i}, ({end} - 1u) / 4u)");
                    line!(s, "let from_{x}_{i} = p.{x} + row_{x}_{i} * p.{x}_stride + {four};");
                }
            }
        }
    }

    /// Fetches a step; what lies outside of the sums counts as zero.
    fn fetch(self, s: &mut String, staged: &Staged, k: &str) {
        let x = staged.operand;
        for i in 0..self.fetched(staged) {
            line!(s, "got_{x}_{i} = vec4<f16>();");
        }
        self.each_fetched(s, staged, |s, i| match staged.turned {
            true => {
                line!(s, "{{");
                line!(s, "let at = vec4<u32>({k} + 4u * four_{x}_{i}) + vec4<u32>(0u, 1u, 2u, 3u);");
                line!(s, "if (at.x < k_to) {{");
                line!(s, "let inside = (at >= vec4<u32>(k_from)) & (at < vec4<u32>(k_to));");
                line!(s, "got_{x}_{i} = select(vec4<f16>(), {x}[from_{x}_{i} + {k} / 4u], inside);");
                line!(s, "}}");
                line!(s, "}}");
            }
            false => {
                line!(s, "if ({k} + row_{x}_{i} >= k_from && {k} + row_{x}_{i} < k_to) {{");
                line!(s, "got_{x}_{i} = {x}[from_{x}_{i} + {k} * p.{x}_stride];");
                line!(s, "}}");
            }
        });
    }

    fn stage(self, s: &mut String, staged: &Staged) {
        let (x, first, stride) = (staged.operand, staged.first, staged.stride());
        self.each_fetched(s, staged, |s, i| {
            line!(s, "stage({first}u + row_{x}_{i} * {stride}u + four_{x}_{i}, got_{x}_{i});");
        });
    }

    /// Loads a matrix of what is staged: at some row of the first operand or column of the second one, and some depth.
    fn load(self, s: &mut String, staged: &Staged, name: &str, side: &str, k: u32) {
        let Staged { operand, turned, first, .. } = staged;
        let unit = if self.units.fours { 1 } else { 4 };
        let stride = unit * staged.stride();
        let role = operand.to_uppercase();
        let at = match turned {
            true => format!("{}u + ({side}) * {stride}u", unit * (first + k / 4)),
            false => format!("{}u + ({side}) * {unit}u / 4u", unit * first + k * stride),
        };
        // Rows of the matrix are rows in memory, or columns are.
        let rows = *turned == (role == "A");
        let load = if rows { "coopLoadT" } else { "coopLoad" };
        line!(s, "let {name}_at = {at};");
        line!(s, "let {name} = {load}<coop_mat{0}x{0}<f16, {role}>>(&staged[{name}_at], {stride}u);", self.units.side);
    }

    fn multiply(self, s: &mut String, a: &Staged, b: &Staged) {
        let [rows, cols] = self.each();
        let side = self.units.side;
        for k in (0..self.deep()).step_by(side as usize) {
            line!(s, "{{");
            for i in 0..rows {
                self.load(s, a, &format!("a_{i}"), &format!("top + {}u", i * side), k);
            }
            for j in 0..cols {
                self.load(s, b, &format!("b_{j}"), &format!("left + {}u", j * side), k);
            }
            for (i, j) in pairs(rows, cols) {
                line!(s, "sum_{i}_{j} = coopMultiplyAdd(a_{i}, b_{j}, sum_{i}_{j});");
            }
            line!(s, "}}");
        }
    }

    /// Hands the sums on, one matrix of each subgroup at a time.
    fn store(self, s: &mut String) {
        let ([m, n], [high, wide], [rows, cols]) = (self.tile(), self.subgroups(), self.each());
        let (side, fours) = (self.units.side, self.fours());
        let unit = if self.units.fours { 1 } else { 4 };
        // Arguments of a store are worked out before it: the compiler would not do it by itself.
        line!(s, "let slot = one * {}u;", unit * fours);
        for (i, j) in pairs(rows, cols) {
            line!(s, "workgroupBarrier();");
            line!(s, "coopStoreT(sum_{i}_{j}, &sums[slot], {}u);", unit * side / 4);
            line!(s, "workgroupBarrier();");
            line!(s, "for (var at = thread; at < {}u; at += {}u) {{", high * wide * fours, self.threads());
            line!(s, "let by = at / {fours}u;");
            line!(
                s,
                "let row = {m}u * tile.y + by / {wide}u * {}u + {}u + at % {fours}u / {}u;",
                m / high,
                i * side,
                side / 4
            );
            line!(
                s,
                "let col = {n}u * tile.z + by % {wide}u * {}u + {}u + 4u * (at % {}u);",
                n / wide,
                j * side,
                side / 4
            );
            line!(s, "if (row >= p.m_from && row < p.m && col < p.n) {{");
            line!(s, "finish(tile.x, row, col / 4u, summed(at));");
            line!(s, "}}");
            line!(s, "}}");
        }
    }
}

fn pairs(rows: u32, cols: u32) -> impl Iterator<Item = (u32, u32)> {
    (0..rows).flat_map(move |i| (0..cols).map(move |j| (i, j)))
}

/// Kernels for all kinds of devices.
#[cfg(test)]
pub(crate) fn all() -> Vec<Matrices> {
    let units = |(side, fours)| Units { side, subgroup: 32, fours, threads: 256, memory: 32768 };
    [(16, true), (16, false), (8, true), (8, false)]
        .into_iter()
        .map(units)
        .flat_map(|units| [false, true].map(|large| Matrices { units, large }))
        .filter(|matrices| !(matrices.large && matrices.units.side == 8))
        .inspect(|matrices| assert!(matrices.fits()))
        .collect()
}

/// What was found about each device.
static FOUND: Mutex<BTreeMap<String, Result<Units, String>>> = Mutex::new(BTreeMap::new());

/// Looks for a way to use a device's matrices.
///
/// # Errors
/// Why there is none, in words; no words where the device has no matrices.
pub(crate) async fn find(context: &Context) -> Result<Units, String> {
    let device = format!("{} {}", context.found, context.limits.max_compute_workgroup_storage_size);
    let found = || FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = found().get(&device) {
        return known.clone();
    }
    let mut result = Err(String::new());
    for units in Units::candidates(context) {
        let makers =
            [true, false].map(|large| Matrices { units, large }).into_iter().filter(|matrices| matrices.fits());
        result = agree(context, Precision::F16, makers.map(Maker::Matrices)).await.map(|()| units);
        if result.is_ok() {
            break;
        }
    }
    found().insert(device, result.clone());
    result
}

/// Sizes that no tile fits, one with parts, and a larger one.
const TRIED: [(u32, u32, u32); 4] = [(5, 7, 9), (130, 70, 100), (40, 77, 1100), (300, 400, 500)];

/// Whether makers give what the template gives, on a device of their own.
///
/// # Errors
/// That they do not, in words.
pub(crate) async fn agree(
    context: &Context,
    precision: Precision,
    makers: impl Iterator<Item = Maker> + Clone,
) -> Result<(), String> {
    let template = Maker::Tiles(Variant::new(32, 32, 32, 4, 4));
    let refused = |fault: Fault| format!("cooperative matrices do not work on this device: {fault}");
    let wrong = || "cooperative matrices gave wrong results on this device".to_owned();
    let shapes = TRIED.iter().flat_map(|&(m, n, k)| Which::ALL.map(|which| Shape { which, m, n, k }));
    let first = Shape { which: Which::Forward, m: 1, n: 1, k: 1 };
    let mut trial = Trial::new(context, precision, first, template).await.map_err(refused)?;
    for shape in shapes {
        trial.reshape(shape).map_err(refused)?;
        let expected = trial.output(template).map_err(refused)?;
        for maker in makers.clone() {
            let got = trial.output(maker).map_err(refused)?;
            // Sums over `k` products of up to 1, in single precision; one rounding to half where outputs are stored so.
            let own = 2.5e-6 * shape.k as f32;
            let stored = if shape.which == Which::GradWeight { 0.0 } else { 1e-3 };
            let near = |(x, y): (&f32, &f32)| (x - y).abs() <= own + stored * y.abs();
            if !got.iter().zip(&expected).all(near) {
                return Err(wrong());
            }
        }
    }
    Ok(())
}
