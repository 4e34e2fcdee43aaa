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
pub(crate) const PARTS: u64 = 16 << 20;

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

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::TestRunner};
    use vaecf_core::backend::{Backend, Buf, Host, HostMut, Role};

    use super::*;
    use crate::{Lowered, Options, Precision};

    /// A matrix among numbers that are none, and what it holds.
    struct Placed {
        mat: Mat,
        numbers: Vec<f32>,
    }

    impl Placed {
        fn at(&self, row: u32, col: u32) -> f32 {
            assert!(row < self.mat.rows && col < self.mat.cols);
            self.numbers[self.index(row, col)]
        }

        fn index(&self, row: u32, col: u32) -> usize {
            self.mat.offset as usize + row as usize * self.mat.stride as usize + col as usize
        }
    }

    /// A device, and numbers as they come.
    struct Bench {
        wgpu: Wgpu,
        state: u64,
        bufs: Vec<Buf>,
    }

    impl Bench {
        fn up_to(&mut self, end: u32) -> u32 {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.state >> 33) as u32 % end
        }

        /// A matrix of -1, 0 and 1, so that sums are exact in half, too, as long as there are not more than 2048.
        fn place(&mut self, role: Role, rows: u32, cols: u32) -> Placed {
            let (offset, beyond) = (4 * self.up_to(20), 4 * self.up_to(3));
            let stride = cols.next_multiple_of(4) + beyond;
            let mat = Mat { buf: Buf::NONE, rows, cols, stride, offset: offset.into() };
            let mut placed = Placed { mat, numbers: vec![f32::NAN; (offset + rows.max(1) * stride) as usize] };
            for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
                let index = placed.index(row, col);
                placed.numbers[index] = self.up_to(3) as f32 - 1.0;
            }
            placed.mat.buf = self.wgpu.alloc(role, placed.numbers.len() as u64).expect("a buffer");
            self.bufs.push(placed.mat.buf);
            self.wgpu.upload(placed.mat.buf, 0, Host::F32(&placed.numbers)).expect("an upload");
            placed
        }

        /// That a matrix is what it should be, and nothing around it has changed.
        fn check(&mut self, placed: &Placed, expected: impl Fn(u32, u32) -> f32) {
            let mut all = placed.numbers.clone();
            for (row, col) in (0..placed.mat.rows).flat_map(|row| (0..placed.mat.cols).map(move |col| (row, col))) {
                all[placed.index(row, col)] = expected(row, col);
            }
            let mut got = vec![0.0; all.len()];
            self.wgpu.download(placed.mat.buf, 0, HostMut::F32(&mut got)).expect("a download");
            for (i, (got, expected)) in got.iter().zip(&all).enumerate() {
                let same = got == expected || (got.is_nan() && expected.is_nan());
                assert!(same, "element {i} of {:?} is {got}, not {expected}", placed.mat);
            }
        }

        fn all_products(&mut self, m: u32, n: u32, k: u32, curve: Curve) {
            let bent = |a: f32| if curve == Curve::Relu { a.max(0.0) } else { a };
            let slope = |y: f32| if curve == Curve::Relu && y <= 0.0 { 0.0 } else { 1.0 };
            let sum = |term: &dyn Fn(u32) -> f32| (0..k).map(term).sum::<f32>();

            let (x, w, b) =
                (self.place(Role::Act, m, k), self.place(Role::Weight, k, n), self.place(Role::Weight, 1, n));
            let y = self.place(Role::Act, m, n);
            self.wgpu.op_linear(x.mat, w.mat, b.mat, curve, y.mat).expect("a product");
            self.check(&y, |i, j| bent(sum(&|l| x.at(i, l) * w.at(l, j)) + b.at(0, j)));

            let (x, dy) = (self.place(Role::Act, k, m), self.place(Role::Act, k, n));
            let (dw, db) = (self.place(Role::Grad, m, n), self.place(Role::Grad, 1, n));
            self.wgpu.op_linear_grad_weight(x.mat, dy.mat, dw.mat, db.mat, false).expect("a product");
            self.check(&dw, |i, j| sum(&|l| x.at(l, i) * dy.at(l, j)));
            self.check(&db, |_, j| sum(&|l| dy.at(l, j)));
            self.wgpu.op_linear_grad_weight(x.mat, dy.mat, dw.mat, db.mat, true).expect("a product");
            self.check(&dw, |i, j| 2.0 * sum(&|l| x.at(l, i) * dy.at(l, j)));
            self.check(&db, |_, j| 2.0 * sum(&|l| dy.at(l, j)));

            let (dy, w, x) = (self.place(Role::Act, m, k), self.place(Role::Weight, n, k), self.place(Role::Act, m, n));
            let dx = self.place(Role::Act, m, n);
            self.wgpu.op_linear_grad_input(dy.mat, w.mat, x.mat, curve, dx.mat).expect("a product");
            self.check(&dx, |i, j| sum(&|l| dy.at(i, l) * w.at(j, l)) * slope(x.at(i, j)));
            self.bufs.drain(..).for_each(|buf| self.wgpu.free(buf));
        }
    }

    fn products_are_exact(precision: Precision, lowered: Lowered, cases: u32) {
        let bench = match Wgpu::open(&Options { precision, lowered, ..Options::default() }) {
            Ok(wgpu) => std::cell::RefCell::new(Bench { wgpu, state: 0, bufs: Vec::new() }),
            Err(why) => return eprintln!("not tested: {why}"),
        };
        // Sums that are made in two parts.
        bench.borrow_mut().all_products(3, 5, 1030, Curve::Relu);
        let sizes = (1_u32..30, 1_u32..30, 0_u32..40, any::<u64>());
        let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
        let test = |(m, n, k, state)| {
            let mut bench = bench.borrow_mut();
            bench.state = state;
            let curve = if state % 2 == 0 { Curve::Identity } else { Curve::Relu };
            bench.all_products(m, n, k, curve);
            Ok(())
        };
        TestRunner::new(config).run(&sizes, test).expect("all products");
    }

    const PIECES: Lowered = Lowered { binding: None, buffer: None, groups: Some(3), piece: Some(64) };
    const NARROW: Lowered = Lowered { binding: Some(256), buffer: None, groups: None, piece: None };

    #[test]
    fn products_are_exact_in_one_piece() {
        products_are_exact(Precision::F32, Lowered::default(), 24);
        products_are_exact(Precision::F16, Lowered::default(), 12);
    }

    #[test]
    fn products_are_exact_in_many_pieces() {
        products_are_exact(Precision::F32, PIECES, 12);
        products_are_exact(Precision::F16, PIECES, 6);
    }

    #[test]
    fn products_are_exact_where_scratch_is_small() {
        products_are_exact(Precision::F32, NARROW, 6);
    }
}
