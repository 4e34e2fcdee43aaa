//! Matrix products through cuBLASLt: for each shape one plan, with the algorithm that the library recommends.
//!
//! Row-major matrices are column-major ones turned over, so `c = a b` is asked for as `c^T = b^T a^T`.

use std::{
    collections::HashMap,
    ffi::c_void,
    mem::{MaybeUninit, size_of_val},
    path::Path,
    ptr,
};

use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
    cublasStatus_t as Status, cudaDataType_t as DataType,
};
use vaecf_core::backend::{Curve, Fault, Result};

use crate::{
    Precision,
    driver::{Memory, Stream},
    libraries,
};

const SYMBOLS: [&str; 13] = [
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
];

/// Which of the three products of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Which {
    /// `y = x w`.
    Forward,
    /// `dw = x^T dy`, in single precision.
    GradWeight,
    /// `dx = dy w^T`.
    GradInput,
}

/// `c[m, n] = a b`, summed over `k`; addresses and strides in elements, as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) which: Which,
    pub(crate) m: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) a: (u64, u32),
    pub(crate) b: (u64, u32),
    pub(crate) c: (u64, u32),
    /// The address of `n` numbers. Forward: they are added to each row. Gradient of the weights: the sums of the
    /// columns of `b` go there, in single precision.
    pub(crate) bias: Option<u64>,
    /// What a forward product with a bias goes through.
    pub(crate) curve: Curve,
    /// `c` is in single precision whatever the operands are.
    pub(crate) wide: bool,
}

/// How much of what was asked for the library has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// It has no algorithm for this shape.
    Nothing,
    /// The product, but not the sums of columns.
    Product,
    /// The product and what belongs to its bias.
    All,
}

/// What a plan is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    which: Which,
    sizes: [u32; 3],
    strides: [u32; 3],
    /// Bytes to which the addresses of a, b, c and the bias are aligned.
    aligned: [u32; 4],
    wide: bool,
    epilogue: u32,
}

/// The largest power of two, up to what the library takes for granted unless it is told, that divides an address.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made once in `Products::plan`, and used by no call any more: calls copy what they need.
        unsafe {
            let _ = sys::cublasLtMatmulDescDestroy(self.desc);
            for layout in self.layouts {
                let _ = sys::cublasLtMatrixLayoutDestroy(layout);
            }
        }
    }
}

/// Bytes of scratch that algorithms may use: what the library's makers advise for Hopper.
pub(crate) const WORKSPACE: u64 = 32 << 20;

/// The library, opened, and its plans.
pub(crate) struct Products {
    handle: sys::cublasLtHandle_t,
    precision: Precision,
    workspace: Memory,
    plans: HashMap<Shape, Option<Plan>>,
}

impl std::fmt::Debug for Products {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Products({}, {} plans)", version_text(), self.plans.len())
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: created once in `open`.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

/// Whether the library will not do what it has recommended itself: other ways are left then.
fn refused(status: Status) -> bool {
    matches!(
        status,
        Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE | Status::CUBLAS_STATUS_ARCH_MISMATCH
    )
}

fn check(status: Status) -> Result {
    match status {
        Status::CUBLAS_STATUS_SUCCESS => Ok(()),
        Status::CUBLAS_STATUS_EXECUTION_FAILED => {
            Err(Fault::Lost(format!("a product of cuBLASLt failed ({status:?})")))
        }
        other => Err(Fault::Other(format!("cuBLASLt reports {other:?}"))),
    }
}

/// The version of the library that is open.
fn version_text() -> String {
    // SAFETY: called once the library is known to have the function.
    let version = unsafe { sys::cublasLtGetVersion() };
    format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

impl Products {
    /// Opens the library; `major` is the newest CUDA that the driver speaks.
    ///
    /// # Errors
    /// Why it cannot be used, in words.
    pub(crate) fn open(
        folder: Option<&Path>,
        major: u32,
        precision: Precision,
        workspace: impl FnOnce() -> Result<Memory>,
    ) -> std::result::Result<Self, String> {
        let found = libraries::find_products(folder, major);
        // SAFETY: opens the library that was found, or another of its name; it runs nothing but its set-up.
        if found.is_none() || !unsafe { sys::is_culib_present() } {
            // What a newer CUDA brings does not start with the driver of an older one.
            let package = if major < 13 { "nvidia-cublas-cu12" } else { "nvidia-cublas" };
            return Err(format!("cuBLASLt is not installed (pip install {package} brings it)"));
        }
        for name in SYMBOLS {
            // SAFETY: the symbol is only looked up, not called, and its type has the size of a pointer.
            if unsafe { sys::culib().get::<*const c_void>(name.as_bytes()) }.is_err() {
                return Err(format!("cuBLASLt is too old: it has no {name}"));
            }
        }
        let mut handle = ptr::null_mut();
        // SAFETY: writes one handle, which `drop` gives back.
        let status = unsafe { sys::cublasLtCreate(&raw mut handle) };
        if status != Status::CUBLAS_STATUS_SUCCESS {
            return Err(format!("{} does not start with this driver ({status:?})", version_text()));
        }
        let room = || format!("there is no room for the workspace of cuBLASLt, {} MiB", WORKSPACE >> 20);
        let workspace = workspace().map_err(|_| room())?;
        Ok(Self { handle, precision, workspace, plans: HashMap::new() })
    }

    pub(crate) fn version(&self) -> String {
        version_text()
    }

    /// Queues a product, as far as the library can.
    pub(crate) fn multiply(&mut self, stream: &Stream, o: &Operands) -> Result<Done> {
        let epilogue = match (o.bias, o.which, o.curve) {
            (None, ..) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (_, Which::GradWeight | Which::GradInput, _) => Epilogue::CUBLASLT_EPILOGUE_BGRADA,
            (_, Which::Forward, Curve::Relu) => Epilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
            (_, Which::Forward, _) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
        };
        if self.queue(stream, o, epilogue)? {
            return Ok(Done::All);
        }
        let sums = o.bias.is_some() && o.which == Which::GradWeight;
        let alone = sums && self.queue(stream, &Operands { bias: None, ..*o }, Epilogue::CUBLASLT_EPILOGUE_DEFAULT)?;
        Ok(if alone { Done::Product } else { Done::Nothing })
    }

    /// Queues a product with an epilogue, and says whether there is an algorithm for it.
    fn queue(&mut self, stream: &Stream, o: &Operands, epilogue: Epilogue) -> Result<bool> {
        let shape = Shape {
            which: o.which,
            sizes: [o.m, o.n, o.k],
            strides: [o.a.1, o.b.1, o.c.1],
            aligned: [o.a.0, o.b.0, o.c.0, o.bias.unwrap_or(0)].map(alignment),
            wide: o.wide,
            epilogue: epilogue as u32,
        };
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(shape, epilogue, o.bias)?;
            self.plans.insert(shape, plan);
        }
        let Some(Some(plan)) = self.plans.get(&shape) else { return Ok(false) };
        if let Some(bias) = o.bias {
            set(plan.desc, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, zero) = (1.0_f32, 0.0_f32);
        let [first, second, out] = plan.layouts;
        // SAFETY: the plan was made for these shapes; addresses are of matrices that were checked against their
        // buffers; the workspace is as large as the preference said, and used by this one stream.
        let status = unsafe {
            sys::cublasLtMatmul(
                self.handle,
                plan.desc,
                (&raw const one).cast(),
                o.b.0 as *const c_void,
                first,
                o.a.0 as *const c_void,
                second,
                (&raw const zero).cast(),
                o.c.0 as *const c_void,
                out,
                o.c.0 as *mut c_void,
                out,
                &raw const plan.algorithm,
                self.workspace.at() as *mut c_void,
                self.workspace.bytes as usize,
                stream.raw().cast(),
            )
        };
        if refused(status) {
            self.plans.insert(shape, None);
            return Ok(false);
        }
        check(status).map(|()| true)
    }

    /// The first algorithm that the library recommends for a shape; none where there is none.
    fn plan(&self, shape: Shape, epilogue: Epilogue, bias: Option<u64>) -> Result<Option<Plan>> {
        let half = match self.precision {
            Precision::F32 | Precision::Tf32 => DataType::CUDA_R_32F,
            Precision::F16 => DataType::CUDA_R_16F,
            Precision::Bf16 => DataType::CUDA_R_16BF,
        };
        let compute = match self.precision {
            Precision::Tf32 => Compute::CUBLAS_COMPUTE_32F_FAST_TF32,
            _ => Compute::CUBLAS_COMPUTE_32F,
        };
        let out = if shape.wide || shape.which == Which::GradWeight { DataType::CUDA_R_32F } else { half };
        let [m, n, k] = shape.sizes;
        let [a, b, c] = shape.strides;
        // Column-major: the second operand comes first. Rows and columns as they lie in memory.
        let ((first, first_turned), (second, second_turned)) = match shape.which {
            Which::Forward => (([n, k, b], false), ([k, m, a], false)),
            Which::GradWeight => (([n, k, b], false), ([m, k, a], true)),
            Which::GradInput => (([k, n, b], true), ([k, m, a], false)),
        };
        let mut desc = ptr::null_mut();
        // SAFETY: writes one handle, owned by the plan below.
        check(unsafe { sys::cublasLtMatmulDescCreate(&raw mut desc, compute, DataType::CUDA_R_32F) })?;
        // SAFETY: an algorithm is plain bytes.
        let algorithm = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut plan = Plan { desc, layouts: [ptr::null_mut(); 3], algorithm };
        let turned = |turn: bool| i32::from(turn);
        set(desc, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &turned(first_turned))?;
        set(desc, DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, &turned(second_turned))?;
        set(desc, DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue as u32))?;
        if let Some(bias) = bias {
            set(desc, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
            let kind = if shape.which == Which::Forward { half } else { out };
            set(desc, DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(kind as u32))?;
        }
        let shapes = [(half, first), (half, second), (out, [n, m, c])];
        for (layout, (kind, [rows, cols, stride])) in plan.layouts.iter_mut().zip(shapes) {
            // SAFETY: writes one handle, owned by the plan.
            check(unsafe {
                sys::cublasLtMatrixLayoutCreate(layout, kind, rows.into(), cols.into(), i64::from(stride))
            })?;
        }
        let preference = Preference::new(self.workspace.bytes, shape.aligned)?;
        let (mut results, mut found) = (MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed(), 0);
        let [first, second, out] = plan.layouts;
        // SAFETY: all handles are live; room for the one result that is asked for.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                first,
                second,
                out,
                out,
                preference.0,
                1,
                results.as_mut_ptr(),
                &raw mut found,
            )
        };
        if refused(status) {
            return Ok(None);
        }
        check(status)?;
        if found < 1 {
            return Ok(None);
        }
        // SAFETY: one result was written.
        let result = unsafe { results.assume_init() };
        if result.state != Status::CUBLAS_STATUS_SUCCESS {
            return Ok(None);
        }
        plan.algorithm = result.algo;
        Ok(Some(plan))
    }
}

fn set<T>(desc: sys::cublasLtMatmulDesc_t, attribute: DescAttribute, value: &T) -> Result {
    // SAFETY: the library copies so many bytes of a live value.
    check(unsafe {
        sys::cublasLtMatmulDescSetAttribute(desc, attribute, ptr::from_ref(value).cast(), size_of_val(value))
    })
}

/// What algorithms may do.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace: u64, aligned: [u32; 4]) -> Result<Self> {
        let mut preference = ptr::null_mut();
        // SAFETY: writes one handle, which `drop` gives back.
        check(unsafe { sys::cublasLtMatmulPreferenceCreate(&raw mut preference) })?;
        let preference = Self(preference);
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace)?;
        // Sums that were shared are added up in f32, in a fixed order: not in the output, where blocks race.
        let in_workspace = 2_u32;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &in_workspace)?;
        // Unless it is told, the library takes all addresses for multiples of 256; those within an arena are of 16.
        // The column-major operands are b and a. There is no word for the bias, which therefore counts with d.
        let [a, b, c, bias] = aligned;
        for (attribute, bytes) in [
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c.min(bias)),
        ] {
            preference.set(attribute, &bytes)?;
        }
        Ok(preference)
    }

    fn set<T>(&self, attribute: PreferenceAttribute, value: &T) -> Result {
        // SAFETY: the library copies so many bytes of a live value.
        check(unsafe {
            let at = ptr::from_ref(value).cast();
            sys::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, at, size_of_val(value))
        })
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created once in `new`.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}
