//! Shaders by name, and how they are bound.
//!
//! A kernel is a text with one entry point, `main`. Its parameters are a uniform at group 0; the buffers it works on
//! are at group 1, and whether it writes them is read off the text. Its modules are trusted: what a kernel may touch
//! follows from arguments that were checked, so the shader does not check again at every access.

use std::{collections::HashMap, sync::Arc};

use vaecf_core::backend::{Fault, Result};

use crate::{Planted, context::Context};

/// Bytes of a kernel's parameters, and of their place in a buffer.
pub(crate) const PARAMS: u64 = 256;

/// A compiled kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its number.
    pub(crate) id: usize,
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
    /// Whether each binding is written.
    pub(crate) writes: Vec<bool>,
}

/// All that were asked for so far.
#[derive(Debug)]
pub(crate) struct Kernels {
    /// How parameters are bound, for all.
    pub(crate) params: wgpu::BindGroupLayout,
    compiled: HashMap<String, Arc<Kernel>>,
    planted: Option<Planted>,
}

impl Kernels {
    pub(crate) fn new(context: &Context, planted: Option<Planted>) -> Self {
        let ty = wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: std::num::NonZeroU64::new(PARAMS),
        };
        let entry = entry(0, ty);
        let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &[entry] };
        Self { params: context.device.create_bind_group_layout(&descriptor), compiled: HashMap::new(), planted }
    }

    /// A kernel by name; the text is asked for the first time only. With `all_written`, every buffer is declared as
    /// written, for calls that read and write one buffer through two bindings.
    pub(crate) fn get(
        &mut self,
        context: &Context,
        name: &str,
        all_written: bool,
        text: &dyn Fn() -> String,
    ) -> Result<Arc<Kernel>> {
        let key = if all_written { format!("{name} written") } else { name.to_owned() };
        if let Some(kernel) = self.compiled.get(&key) {
            return Ok(Arc::clone(kernel));
        }
        let text = match &self.planted {
            Some(planted) if planted.is_in(name) => planted.within(&text())?,
            _ => text(),
        };
        let text = if all_written { text.replace("<storage, read>", "<storage, read_write>") } else { text };
        let kernel = Arc::new(compile(context, &self.params, self.compiled.len(), name, &text)?);
        self.compiled.insert(key, Arc::clone(&kernel));
        Ok(kernel)
    }
}

impl Planted {
    fn is_in(&self, name: &str) -> bool {
        name.strip_prefix(&self.kernel[..]).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }

    /// A text with the fault.
    fn within(&self, text: &str) -> Result<String> {
        let Self { kernel, what, which, instead } = self;
        let mut places = text.match_indices(what).map(|(at, _)| at);
        let place = match which {
            Some(which) => places.nth(*which),
            None => places.next().filter(|_| places.next().is_none()),
        };
        let at = place.ok_or_else(|| Fault::Other(format!("{what:?} is no place in the shader {kernel}")))?;
        Ok([&text[..at], instead, &text[at + what.len()..]].concat())
    }
}

fn entry(binding: u32, ty: wgpu::BindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}

/// What the host has to know of a text.
#[derive(Debug, PartialEq)]
struct Outline {
    /// Whether each buffer at group 1 is written, in the order of their bindings.
    writes: Vec<bool>,
    /// Bytes that the threads of a workgroup share.
    shared: u32,
}

fn outline(text: &str) -> std::result::Result<Outline, String> {
    let module = naga::front::wgsl::parse_str(text).map_err(|error| error.emit_to_string(text))?;
    let (mut writes, mut shared) = (Vec::new(), 0);
    for (_, global) in module.global_variables.iter() {
        match (global.space, &global.binding) {
            (naga::AddressSpace::Storage { access }, Some(place)) => {
                writes.push((place.binding, access.contains(naga::StorageAccess::STORE)));
            }
            (naga::AddressSpace::WorkGroup, _) => {
                shared += module.types[global.ty].inner.size(module.to_ctx()).next_multiple_of(16);
            }
            _ => {}
        }
    }
    writes.sort_unstable();
    Ok(Outline { writes: writes.into_iter().map(|(_, writes)| writes).collect(), shared })
}

fn compile(context: &Context, params: &wgpu::BindGroupLayout, id: usize, name: &str, text: &str) -> Result<Kernel> {
    let refuse = |why: &str| {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        Fault::Other(format!("the shader {name} does not compile: {why}"))
    };
    let Outline { writes, shared } = outline(text).map_err(|why| refuse(&why))?;
    // Neither the library nor every driver holds a kernel to this limit.
    let room = context.limits.max_compute_workgroup_storage_size;
    if shared > room {
        return Err(refuse(&format!("its workgroups share {shared} bytes, and {} has {room}", context.found.name)));
    }
    let device = &context.device;
    let entries: Vec<_> = (0..)
        .zip(&writes)
        .map(|(binding, &writes)| {
            let ty = wgpu::BufferBindingType::Storage { read_only: !writes };
            entry(binding, wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None })
        })
        .collect();
    let make = || {
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(name), source: wgpu::ShaderSource::Wgsl(text.into()) };
        // SAFETY: a kernel's loops end, and it touches what its arguments name: ranges that were checked against the
        // buffers they lie in. The suite watches the memory around every argument, and runs the same text checked.
        let module = unsafe { device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) };
        let layout =
            device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: None,
            bind_group_layouts: &[Some(params), Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &[],
                // What a workgroup shares is written before it is read.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        (pipeline, layout)
    };
    // The compiler of shaders is known to panic over some.
    let make = || std::panic::catch_unwind(std::panic::AssertUnwindSafe(make)).ok();
    let made = context.now(0, make).map_err(|fault| match fault {
        Fault::Other(why) => refuse(&why),
        other => other,
    })?;
    let (pipeline, layout) = made.ok_or_else(|| refuse("its compiler failed"))?;
    Ok(Kernel { id, pipeline, layout, writes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_planted_in_its_place_or_not_at_all() {
        let planted = |what: &str, which| {
            let (kernel, instead) = ("some".into(), "fault".into());
            Planted { kernel, what: what.into(), which, instead }
        };
        let fits = |planted: Planted, text: &str| assert_eq!(planted.within("one two one").as_deref(), Ok(text));
        fits(planted("two", None), "one fault one");
        fits(planted("one", Some(1)), "one two fault");
        for (what, which) in [("one", None), ("three", None), ("one", Some(2))] {
            let refused = planted(what, which).within("one two one");
            assert!(matches!(&refused, Err(Fault::Other(why)) if why.contains("no place")), "{refused:?}");
        }
        let names = ["some", "some variant", "something", "awe some"];
        assert_eq!(names.map(|name| planted("two", None).is_in(name)), [true, true, false, false]);
    }

    #[test]
    fn an_outline_tells_what_is_written_and_shared() {
        let text = "
            @group(0) @binding(0) var<uniform> p: u32;
            @group(1) @binding(1) var<storage, read_write> b: array<u32>;
            @group(1) @binding(0) var<storage, read> a: array<vec4<f32>>;
            var<workgroup> some: array<vec2<u32>, 5>;
            var<workgroup> count: atomic<u32>;
            @compute @workgroup_size(1) fn main() { b[0] = p + u32(a[0].x) + some[0].x + atomicLoad(&count); }";
        assert_eq!(outline(text), Ok(Outline { writes: vec![false, true], shared: 48 + 16 }));
        assert!(outline("fn main( {").is_err_and(|why| why.contains("main(")));
    }
}
