//! The compiled kernels of a device, by name, and the structures that they take.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::c_void,
    rc::Rc,
};

use vaecf_core::backend::{Fault, Result};

use crate::{
    blob::Blob,
    driver::{Context, Kernel, Module, Stream},
};

/// The kernels, compiled ahead for all kinds of devices: see `kernels/` and `examples/kernels`.
static COMPILED: &[u8] = include_bytes!("../kernels/kernels.bin");

/// Rows of the batch: `Rows` in `kernels/common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) indptr: u64,
    pub(crate) indices: u64,
    pub(crate) values: u64,
    pub(crate) users: u64,
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// `Noise` in `kernels/common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    pub(crate) seed: [u32; 2],
    pub(crate) stream: u32,
    pub(crate) keep: f32,
    pub(crate) inverse_keep: f32,
    pub(crate) threshold: u64,
}

/// `Product` in `kernels/gemm.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Product {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) a_stride: u64,
    pub(crate) b_stride: u64,
    pub(crate) m: u32,
    pub(crate) n: u32,
    pub(crate) k: u32,
    pub(crate) k_each: u32,
    pub(crate) c: u64,
    pub(crate) c_stride: u64,
    pub(crate) bias: u64,
    pub(crate) curve: u32,
    pub(crate) x_curve: u32,
    pub(crate) x: u64,
    pub(crate) x_stride: u64,
    pub(crate) parts: u64,
}

/// How a kernel is spread over the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: u32,
    /// Bytes of shared memory of a block.
    pub(crate) shared: u32,
}

/// Kernels that this device runs.
#[derive(Debug)]
pub(crate) struct Kernels {
    by_name: HashMap<String, Kernel>,
    /// What they lie in.
    _modules: Vec<Module>,
}

impl Kernels {
    /// Loads all kernels in the form for this device. All of them now, because a recording is no time for the driver
    /// to load code.
    pub(crate) fn load(context: &Rc<Context>) -> Result<Self> {
        let (major, minor) = (context.properties.major, context.properties.minor);
        let blob = Blob::open(COMPILED).map_err(|e| Fault::Other(e.to_string()))?;
        let (mut modules, mut by_name) = (Vec::new(), HashMap::new());
        let stems: BTreeSet<&str> = blob.images().map(|image| image.stem).collect();
        for stem in stems {
            let image = blob.module(stem, major, minor).ok_or_else(|| {
                Fault::Other(format!(
                    "{} has compute capability {major}.{minor}, and 7.5 is the oldest that the kernels run on",
                    context.properties.name
                ))
            })?;
            // PTX is text, which ends with a zero.
            let mut code = image.code.to_vec();
            code.push(0);
            let module = context.module(&code)?;
            for kernel in image.kernels {
                by_name.insert(kernel.name.clone(), module.kernel(&kernel.name)?);
            }
            modules.push(module);
        }
        Ok(Self { by_name, _modules: modules })
    }

    /// A kernel by its name.
    fn get(&self, name: &str) -> Result<Kernel> {
        self.by_name.get(name).copied().ok_or_else(|| Fault::Other(format!("there is no kernel {name}")))
    }

    /// Queues a kernel; nothing where the grid is empty.
    ///
    /// # Safety
    /// That of [`Stream::launch`].
    pub(crate) unsafe fn launch(
        &self,
        stream: &Stream,
        name: &str,
        grid: Grid,
        arguments: &mut [*mut c_void],
    ) -> Result {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        // SAFETY: what the caller promises.
        unsafe { stream.launch(self.get(name)?, grid.blocks, grid.threads, grid.shared, arguments) }
    }
}

/// Queues a kernel of a [`crate::Cuda`] with these arguments, in the order and of the types of its parameters; on the
/// main queue unless another is named.
macro_rules! launch {
    ($cuda:expr, on $stream:expr, $name:expr, $grid:expr, $($argument:expr),+ $(,)?) => {{
        // Each argument in a place of its own, until the driver has copied it.
        let (mut places, mut list) = (($($argument,)+), Vec::new());
        $crate::kernels::Arguments::list(&mut places, &mut list);
        // SAFETY: the operations in `ops` and sums in `group` pass what the kernels' parameter lists say, and
        // matrices and lists that were checked against their buffers.
        unsafe { $cuda.kernels.launch($stream, $name, $grid, &mut list) }
    }};
    ($cuda:expr, $name:expr, $grid:expr, $($argument:expr),+ $(,)?) => {
        $crate::kernels::launch!($cuda, on &$cuda.main, $name, $grid, $($argument),+)
    };
}
pub(crate) use launch;

/// A tuple of arguments as the driver wants them: pointers to each.
pub(crate) trait Arguments {
    fn list(&mut self, list: &mut Vec<*mut c_void>);
}

macro_rules! tuples {
    ($($name:ident)+) => {
        impl<$($name: Copy),+> Arguments for ($($name,)+) {
            fn list(&mut self, list: &mut Vec<*mut c_void>) {
                #[expect(non_snake_case, reason = "values go by the names of their types")]
                let ($($name,)+) = self;
                $(list.push(std::ptr::from_mut($name).cast());)+
            }
        }
    };
}
tuples!(A);
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);
tuples!(A B C D E);
tuples!(A B C D E F);
tuples!(A B C D E F G);
tuples!(A B C D E F G H);
tuples!(A B C D E F G H I);
tuples!(A B C D E F G H I J);
tuples!(A B C D E F G H I J K);
tuples!(A B C D E F G H I J K L);
