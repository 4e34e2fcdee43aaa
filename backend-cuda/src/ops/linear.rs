//! The three products of a dense layer.

use vaecf_core::backend::{Curve, Mat, Result};

use crate::{
    ALIGN, Cuda,
    kernels::{Grid, Product, launch},
    products::{Done, Operands, Which},
};

/// Rows and columns of the tile that a block makes, and the bytes that it works in.
const SIDE: u32 = 128;
const SHARED: u32 = 3 * 2 * SIDE * 64;
const THREADS: u32 = 256;

/// Bytes that shares of products may take up.
pub(crate) const SHARES: u64 = 64 << 20;

/// Numbers that the second kernel of a shared product finishes in one thread.
const GROUP: u32 = 8;

impl Cuda {
    pub(crate) fn op_linear(&mut self, x: Mat, w: Mat, b: Mat, curve: Curve, y: Mat) -> Result {
        let bias = self.act(b)?;
        let operands = Operands {
            which: Which::Forward,
            m: y.rows,
            n: y.cols,
            k: x.cols,
            a: (self.act(x)?, x.stride),
            b: (self.act(w)?, w.stride),
            c: (self.act(y)?, y.stride),
            bias: Some(bias),
            curve,
            wide: false,
        };
        let product = Product { bias, curve: curve as u32, ..product(&operands) };
        match curve {
            // The library adds the bias, and knows these curves.
            Curve::Identity | Curve::Relu if self.multiply(&operands)? == Done::All => Ok(()),
            Curve::Tanh => self.multiply_and_finish(&operands, product),
            _ => self.gemm(&operands, product),
        }
    }

    pub(crate) fn op_linear_grad_weight(&mut self, x: Mat, dy: Mat, dw: Mat, db: Mat) -> Result {
        let operands = Operands {
            which: Which::GradWeight,
            m: dw.rows,
            n: dw.cols,
            k: x.rows,
            a: (self.act(x)?, x.stride),
            b: (self.act(dy)?, dy.stride),
            c: (self.single(dw)?, dw.stride),
            bias: Some(self.single(db)?),
            curve: Curve::Identity,
            wide: false,
        };
        match self.multiply(&operands)? {
            Done::All => return Ok(()),
            Done::Product => {}
            Done::Nothing => self.gemm(&operands, product(&operands))?,
        }
        self.column_sums(dy, db)
    }

    pub(crate) fn op_linear_grad_input(&mut self, dy: Mat, w: Mat, x: Mat, curve: Curve, dx: Mat) -> Result {
        let operands = Operands {
            which: Which::GradInput,
            m: dx.rows,
            n: dx.cols,
            k: dy.cols,
            a: (self.act(dy)?, dy.stride),
            b: (self.act(w)?, w.stride),
            c: (self.act(dx)?, dx.stride),
            bias: None,
            curve: Curve::Identity,
            wide: false,
        };
        let bent = match curve {
            Curve::Identity => Product::default(),
            _ => Product { x: self.act(x)?, x_stride: x.stride.into(), x_curve: curve as u32, ..Product::default() },
        };
        let product = Product { x: bent.x, x_stride: bent.x_stride, x_curve: bent.x_curve, ..product(&operands) };
        match curve {
            Curve::Identity if self.multiply(&operands)? == Done::All => Ok(()),
            Curve::Identity => self.gemm(&operands, product),
            _ => self.multiply_and_finish(&operands, product),
        }
    }

    /// `out[c] = sum of column c`.
    pub(crate) fn column_sums(&mut self, of: Mat, out: Mat) -> Result {
        const ROWS: u32 = 256;
        let (from, to) = (self.act(of)?, self.single(out)?);
        let (rows, cols) = (of.rows, of.cols);
        let wide = 32 * (16 / self.precision.bytes());
        let parts = rows.div_ceil(ROWS).clamp(1, 512);
        let each = rows.div_ceil(parts);
        let sums = match parts {
            1 => to,
            _ => self.partial.at_least(&self.context, 4 * u64::from(parts) * u64::from(cols))?,
        };
        let shared = 8 * (wide + 1) * 4;
        let grid = Grid { blocks: [cols.div_ceil(wide), parts, 1], threads: THREADS, shared };
        launch!(self, &self.named("column_sums"), grid, from, u64::from(of.stride), rows, cols, each, sums)?;
        if parts == 1 {
            return Ok(());
        }
        let grid = Grid { blocks: [cols.div_ceil(256), 1, 1], threads: 256, shared: 0 };
        launch!(self, "column_sums_finish", grid, sums, parts, cols, to)
    }

    /// A product by cuBLASLt, where it is there and can.
    fn multiply(&mut self, operands: &Operands) -> Result<Done> {
        match &mut self.products {
            Some(products) if operands.m > 0 && operands.n > 0 && operands.k > 0 => {
                products.multiply(&self.main, &in_vectors(operands))
            }
            _ => Ok(Done::Nothing),
        }
    }

    /// A product by cuBLASLt in single precision, and what it does not know by a kernel: before a curve, or a slope,
    /// nothing is rounded to half.
    fn multiply_and_finish(&mut self, operands: &Operands, mut product: Product) -> Result {
        let stride = operands.n.next_multiple_of(GROUP);
        if self.products.is_some() {
            product.parts = self.partial.at_least(&self.context, 4 * u64::from(operands.m) * u64::from(stride))?;
            let wide = Operands { c: (product.parts, stride), wide: true, bias: None, ..*operands };
            if self.multiply(&wide)? == Done::All {
                return self.join(product, 1);
            }
            product.parts = 0;
        }
        self.gemm(operands, product)
    }

    /// A product by this crate's kernels. Where it has too few tiles for the device, blocks share its sums.
    fn gemm(&mut self, operands: &Operands, mut product: Product) -> Result {
        let Operands { which, m, n, k, .. } = *operands;
        let (wide, high) = (n.div_ceil(SIDE), m.div_ceil(SIDE));
        let (depth, stride) = (64 / self.precision.bytes(), n.next_multiple_of(GROUP));
        let tiles = u64::from(wide) * u64::from(high);
        let most = (SHARES / (4 * u64::from(m) * u64::from(stride)).max(1)).min(u64::from(k / (8 * depth)));
        let wanted = u64::from(self.context.properties.processors) / tiles.max(1);
        let parts = if which == Which::GradWeight { 1 } else { wanted.min(most).clamp(1, 64) as u32 };
        product.k_each = k.div_ceil(parts).next_multiple_of(depth);
        let parts = k.div_ceil(product.k_each.max(1)).max(1);
        if parts > 1 {
            product.parts =
                self.partial.at_least(&self.context, 4 * u64::from(parts) * u64::from(m) * u64::from(stride))?;
        }
        let end = match which {
            Which::Forward => "forward",
            Which::GradWeight => "grad_weight",
            Which::GradInput => "grad_input",
        };
        let grid = Grid { blocks: [wide, high, parts], threads: THREADS, shared: SHARED };
        launch!(self, &format!("gemm_{}_{end}", self.precision.name()), grid, product)?;
        if parts == 1 {
            return Ok(());
        }
        self.join(product, parts)
    }

    /// Adds up `parts` and finishes them.
    fn join(&mut self, product: Product, parts: u32) -> Result {
        let groups = u64::from(product.m) * u64::from(product.n.div_ceil(GROUP));
        let grid = Grid { blocks: [groups.div_ceil(THREADS.into()) as u32, 1, 1], threads: THREADS, shared: 0 };
        launch!(self, &self.named("join"), grid, product, parts)
    }
}

/// The same product of rows that end where their padding does. The library has its fast kernels for rows of whole
/// vectors of 16 bytes, whatever their stride. The padding of weights, biases and gradients is zero, so it comes to
/// zero and adds nothing; and it is nobody else's, because whatever comes next begins at a multiple, too. What a
/// forward product sums over stays as it is: beyond its input there may be other numbers.
fn in_vectors(operands: &Operands) -> Operands {
    let whole = |cols: u32| cols.next_multiple_of(ALIGN);
    let (n, k) = match operands.which {
        Which::Forward | Which::GradWeight => (whole(operands.n), operands.k),
        Which::GradInput => (operands.n, whole(operands.k)),
    };
    let strides = match operands.which {
        Which::Forward | Which::GradWeight => n <= operands.b.1.min(operands.c.1),
        Which::GradInput => k <= operands.a.1.min(operands.b.1),
    };
    if strides { Operands { n, k, ..*operands } } else { *operands }
}

/// The operands as the kernels take them.
fn product(o: &Operands) -> Product {
    Product {
        a: o.a.0,
        b: o.b.0,
        c: o.c.0,
        a_stride: o.a.1.into(),
        b_stride: o.b.1.into(),
        c_stride: o.c.1.into(),
        m: o.m,
        n: o.n,
        k: o.k,
        ..Product::default()
    }
}
