//! The three products of a dense layer, and sums of columns.
//!
//! Where operands are cut, a product is made cell by cell: stretches of rows and columns of the output, and for each of
//! them the stretches of its sums, which are added up in single precision.

use std::{collections::BTreeSet, ops::Range};

use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Curve, Mat, Result};

use crate::{
    Wgpu,
    cut::{or_nothing, stretches},
    memory::{At, Floats},
    products::{Ends, Maker, Shape, Which, join},
};

/// Elements that parts of sums take up at the most.
const PARTS: u64 = 16 << 20;

/// `Params` in `product.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct Params {
    groups: u32,
    m_from: u32,
    m: u32,
    n_from: u32,
    n: u32,
    k_from: u32,
    k: u32,
    k_each: u32,
    parts: u32,
    a: u32,
    a_stride: u32,
    b: u32,
    b_stride: u32,
    c: u32,
    c_stride: u32,
    beside: u32,
    beside_stride: u32,
    curve: u32,
    add: u32,
}

/// `Params` in `column_sums.wgsl`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Sums {
    groups: u32,
    rows: u32,
    cols: u32,
    x: u32,
    x_stride: u32,
    to: u32,
    add: u32,
}

/// A product, `c = a b`, and what becomes of it.
struct Product {
    shape: Shape,
    a: Floats,
    b: Floats,
    /// The bias of a forward product; the input, for the gradient of the input.
    beside: Option<Floats>,
    c: Floats,
    curve: Curve,
    add: bool,
}

/// Where a cell begins along one side of a matrix, and what counts as zero there.
#[derive(Clone, Copy)]
struct Start {
    at: u32,
    zero: u32,
}

impl Start {
    /// The only row of a bias.
    const ONLY: Self = Self { at: 0, zero: 0 };

    /// Of rows and columns of the output, which count from the four that a cell begins in.
    fn near(side: &Range<u32>) -> Self {
        Self { at: side.start, zero: side.start / 4 * 4 }
    }

    /// Of sums, which count from where the matrix begins.
    fn far(side: &Range<u32>) -> Self {
        Self { at: side.start, zero: 0 }
    }
}

/// The buffer that a cell lies in, and where in it the row and column are that count as zero, or would be.
fn place(of: &Floats, row: Start, col: Start) -> At {
    let four = col.at / 4;
    let At { buffer, four: at } = of.at(row.at, 4 * four);
    let back = (row.at - row.zero).wrapping_mul(of.stride()).wrapping_add(four - col.zero / 4);
    At { buffer, four: at.wrapping_sub(back) }
}

/// Fours that the columns of a cell take up.
fn fours(side: &Range<u32>) -> u32 {
    side.end.div_ceil(4) - side.start / 4
}

/// A stretch, in stretches that are no longer than so much.
fn shortened(side: &Range<u32>, most: u64) -> impl Iterator<Item = Range<u32>> {
    let (most, end) = (u32::try_from(most).unwrap_or(u32::MAX), side.end);
    side.clone().step_by(most as usize).map(move |from| from..end.min(from.saturating_add(most)))
}

impl Product {
    /// Where the rows and columns of the output, and the sums, are cut.
    fn cuts(&self) -> [BTreeSet<u32>; 3] {
        let (a, b, c) = (self.a.cuts(), self.b.cuts(), self.c.cuts());
        let (mut rows, mut cols) = (c.rows, c.cols);
        if let Some(beside) = &self.beside {
            let cuts = beside.cuts();
            cols.extend(cuts.cols);
            if self.shape.which == Which::GradInput {
                rows.extend(cuts.rows);
            }
        }
        let (m, n, k) = match self.shape.which {
            Which::Forward => (a.rows, b.cols, &a.cols | &b.rows),
            Which::GradWeight => (a.cols, b.cols, &a.rows | &b.rows),
            Which::GradInput => (a.rows, b.rows, &a.cols | &b.cols),
        };
        [&rows | &m, &cols | &n, k]
    }

    /// What lies beside the output, of one cell.
    fn beside(&self, m: &Range<u32>, n: &Range<u32>) -> Option<At> {
        let row = if self.shape.which == Which::Forward { Start::ONLY } else { Start::near(m) };
        self.beside.as_ref().map(|beside| place(beside, row, Start::near(n)))
    }

    /// The output of one cell.
    fn output(&self, m: &Range<u32>, n: &Range<u32>) -> At {
        place(&self.c, Start::near(m), Start::near(n))
    }

    /// Parameters of one cell, as if it was finished at once.
    fn params(&self, m: &Range<u32>, n: &Range<u32>, c: &At, beside: Option<&At>) -> Params {
        let (top, left) = (Start::near(m), Start::near(n));
        Params {
            m_from: top.at - top.zero,
            m: m.end - top.zero,
            n_from: left.at - left.zero,
            n: n.end - left.zero,
            c: c.four,
            c_stride: self.c.stride(),
            beside: beside.map_or(0, |at| at.four),
            beside_stride: self.beside.as_ref().map_or(0, Floats::stride),
            curve: self.curve as u32,
            parts: 1,
            ..Params::default()
        }
    }
}

impl Wgpu {
    pub(crate) fn op_linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        let shape = Shape { which: Which::Forward, m: y.rows, n: y.cols, k: x.cols };
        let (a, b, beside, c) = (self.act(x)?, self.act(w)?, Some(self.act(b)?), self.act(y)?);
        self.multiply(&Product { shape, a, b, beside, c, curve, add: false })
    }

    /// With `add`, the gradients come to those that are there.
    pub(crate) fn op_linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat, add: bool) -> Result {
        let shape = Shape { which: Which::GradWeight, m: dw.rows, n: dw.cols, k: x.rows };
        let (a, b, c) = (self.act(x)?, self.act(dy)?, self.single(dw)?);
        self.multiply(&Product { shape, a, b, beside: None, c, curve: Curve::Identity, add })?;
        self.column_sums(dy, db, add)
    }

    pub(crate) fn op_linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        let shape = Shape { which: Which::GradInput, m: dx.rows, n: dx.cols, k: dy.cols };
        let (a, b, beside, c) = (self.act(dy)?, self.act(w)?, Some(self.act(x)?), self.act(dx)?);
        self.multiply(&Product { shape, a, b, beside, c, curve, add: false })
    }

    /// `out[c] = sum of column c`; with `add`, it comes to what is there.
    pub(crate) fn column_sums(&mut self, of: Mat, out: Mat, add: bool) -> Result {
        let (of, out) = (self.act(of)?, self.single(out)?);
        let cuts = of.cuts();
        for cols in stretches(&(&cuts.cols | &out.cuts().cols)) {
            for (i, rows) in or_nothing(stretches(&cuts.rows)).into_iter().enumerate() {
                let (from, to) = (of.at(rows.start, cols.start), out.at(0, cols.start));
                let cols = cols.end - cols.start;
                let sums = Sums {
                    groups: cols.div_ceil(32),
                    rows: rows.end - rows.start,
                    cols,
                    x: from.four,
                    x_stride: of.stride(),
                    to: to.four,
                    add: (add || i > 0).into(),
                };
                let text = include_str!("../../shaders/column_sums.wgsl");
                self.call("column_sums", &[text], &[&from.buffer, &to.buffer], &sums, sums.groups.into())?;
            }
        }
        Ok(())
    }

    fn multiply(&mut self, product: &Product) -> Result {
        let shape = product.shape;
        let maker = self.products.maker(&self.context, self.precision, shape);
        let [ms, ns, ks] = product.cuts().map(|cuts| stretches(&cuts));
        let ks = or_nothing(ks);
        // The output itself can take what is added up to gradients of weights. What goes through a curve is added up
        // before.
        if shape.parts() == 1 && (ks.len() == 1 || shape.which == Which::GradWeight) {
            for (m, n) in ms.iter().flat_map(|m| ns.iter().map(move |n| (m, n))) {
                for (i, k) in ks.iter().enumerate() {
                    self.multiply_cell(product, maker, m, n, k, product.add || i > 0)?;
                }
            }
            return Ok(());
        }
        let limits = &self.context.limits;
        let room = PARTS.min(limits.max_storage_buffer_binding_size.min(limits.max_buffer_size) / 4);
        for n in ns.iter().flat_map(|n| shortened(n, room / 8)) {
            let width = 4 * u64::from(fours(&n));
            let parts = u64::from(shape.parts()).min(room / (4 * width)).max(1);
            // There may be three more rows, those of the four that the first row is in.
            let rows = (room / (parts * width)).saturating_sub(3).max(1);
            for m in ms.iter().flat_map(|m| shortened(m, rows)) {
                self.multiply_in_parts(product, maker, &m, &n, &ks, parts as u32)?;
            }
        }
        Ok(())
    }

    /// Makes one cell of a product, over one stretch of its sums.
    fn multiply_cell(
        &mut self,
        product: &Product,
        maker: Maker,
        m: &Range<u32>,
        n: &Range<u32>,
        k: &Range<u32>,
        add: bool,
    ) -> Result {
        let (beside, c) = (product.beside(m, n), product.output(m, n));
        let params = Params { add: add.into(), ..product.params(m, n, &c, beside.as_ref()) };
        let rest: Vec<_> = beside.iter().chain([&c]).collect();
        self.run_product(product, maker, Ends::Finished, m, n, k, params, &rest)
    }

    /// Makes the sums of one cell in parts, and finishes it.
    fn multiply_in_parts(
        &mut self,
        product: &Product,
        maker: Maker,
        m: &Range<u32>,
        n: &Range<u32>,
        ks: &[Range<u32>],
        parts: u32,
    ) -> Result {
        let (beside, c) = (product.beside(m, n), product.output(m, n));
        let finished = Params { parts, add: product.add.into(), ..product.params(m, n, &c, beside.as_ref()) };
        let bytes = 16 * u64::from(parts) * u64::from(finished.m) * u64::from(fours(n));
        let partial = self.scratch.partial.at_least(&self.context, &mut self.queue, bytes)?;
        let partial = At { buffer: partial, four: 0 };
        for (i, k) in ks.iter().enumerate() {
            let params = Params { add: (i > 0).into(), c: 0, c_stride: fours(n), ..finished };
            self.run_product(product, maker, Ends::Part, m, n, k, params, &[&partial])?;
        }
        let (which, precision) = (product.shape.which, self.precision);
        let buffers: Vec<_> = [&partial].into_iter().chain(&beside).chain([&c]).map(|at| &at.buffer).collect();
        let groups = (u64::from(finished.m) * u64::from(fours(n))).div_ceil(64);
        let text = || join(precision, which);
        self.call_text(&format!("join {which:?}"), &text, &buffers, bytemuck::bytes_of(&finished), groups)
    }

    fn run_product(
        &mut self,
        product: &Product,
        maker: Maker,
        ends: Ends,
        m: &Range<u32>,
        n: &Range<u32>,
        k: &Range<u32>,
        params: Params,
        rest: &[&At],
    ) -> Result {
        let (which, precision) = (product.shape.which, self.precision);
        let (m, n, sums) = (Start::near(m), Start::near(n), Start::far(k));
        let (a, b) = match which {
            Which::Forward => (place(&product.a, m, sums), place(&product.b, sums, n)),
            Which::GradWeight => (place(&product.a, sums, m), place(&product.b, sums, n)),
            Which::GradInput => (place(&product.a, m, sums), place(&product.b, n, sums)),
        };
        let [high, wide] = maker.tile();
        let groups = params.m.div_ceil(high) * params.n.div_ceil(wide) * params.parts;
        let params = Params {
            groups,
            k_from: k.start,
            k: k.end,
            k_each: (k.end - k.start).div_ceil(params.parts).next_multiple_of(4),
            a: a.four,
            a_stride: product.a.stride(),
            b: b.four,
            b_stride: product.b.stride(),
            ..params
        };
        let buffers: Vec<_> = [&a, &b].into_iter().chain(rest.iter().copied()).map(|at| &at.buffer).collect();
        let text = || maker.text(precision, which, ends);
        self.call_text(&maker.name(which, ends), &text, &buffers, bytemuck::bytes_of(&params), groups.into())
    }
}
