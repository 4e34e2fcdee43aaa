//! Temporary: column sums until those of the products are here.
use bytemuck::{Pod, Zeroable};
use vaecf_core::backend::{Mat, Result};

use crate::{Wgpu, cut::stretches};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    cols: u32,
    from: u32,
    stride: u32,
    to: u32,
    add: u32,
}

impl Wgpu {
    pub(crate) fn column_sums(&mut self, dy: Mat, db: Mat, add: bool) -> Result {
        let (from, to) = (self.act(dy)?, self.single(db)?);
        let cols = from.cuts().cols.union(&to.cuts().cols).copied().collect();
        let rows = if dy.rows == 0 { vec![0..0] } else { stretches(&from.cuts().rows) };
        for (n, rows) in rows.iter().enumerate() {
            for cols in stretches(&cols) {
                let (a, b) = (from.at(rows.start, cols.start), to.at(0, cols.start));
                let params = Params {
                    rows: rows.end - rows.start,
                    cols: cols.end - cols.start,
                    from: a.four,
                    stride: from.stride(),
                    to: b.four,
                    add: (add || n > 0).into(),
                };
                let groups = u64::from(params.cols).div_ceil(256);
                self.call("columns_tmp", &[TEXT], &[&a.buffer, &b.buffer], &params, groups)?;
            }
        }
        Ok(())
    }
}
const TEXT: &str = "
struct Params { rows: u32, cols: u32, a: u32, stride: u32, b: u32, add: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(1) @binding(0) var<storage, read> a: array<Four>;
@group(1) @binding(1) var<storage, read_write> b: array<vec4<f32>>;
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let four = group_number(group, groups) * 64u + thread;
    if (4u * four >= p.cols) { return; }
    var sum = vec4<f32>();
    for (var r = 0u; r < p.rows; r++) { sum += wide(a[p.a + r * p.stride + four]); }
    if (p.add != 0u) { sum += b[p.b + four]; }
    b[p.b + four] = merge(b[p.b + four], sum, p.cols - 4u * four);
}
";
