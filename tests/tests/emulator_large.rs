//! What kernels of the CUDA backend do only at sizes that the suite does not come to: rankings in several rounds
//! and of rows that do not fit in shared memory, gradients of items with very many rows. On the emulator.
#![cfg(target_os = "linux")]

mod built;

use half::f16;
use vaecf_core::backend::{Backend, Buf, Host, HostMut, Mat, Noise, Role, Rows, StepParams};
use vaecf_cuda::{Cuda, Options, Precision};

fn open(precision: Precision) -> Cuda {
    let libraries = Some(built::emulator().to_owned());
    Cuda::open(&Options { precision, libraries, own_products: true, device: 0 }).expect("the emulator")
}

/// Numbers as they come up.
fn numbers(seed: u64) -> impl FnMut() -> u32 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    }
}

fn indices(cuda: &mut Cuda, list: &[u32]) -> Buf {
    let buf = cuda.alloc(Role::Index, list.len() as u64).expect("memory");
    cuda.upload(buf, 0, Host::U32(list)).expect("an upload");
    buf
}

fn rank(precision: Precision, rows: u32, cols: u32, k: u32) {
    let mut cuda = open(precision);
    let stride = cols.next_multiple_of(8);
    let mut next = numbers(u64::from(cols) + u64::from(k));
    // Few different numbers, so that most places are shared.
    let scores: Vec<f32> = (0..rows * stride)
        .map(|_| match next() % 1000 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            2 => -0.0,
            n => (n % 300) as f32 / 16.0 - 9.0,
        })
        .collect();
    let (mut starts, mut seen) = (vec![0], Vec::new());
    for _ in 0..rows {
        seen.extend((0..cols).filter(|_| next().is_multiple_of(20)));
        starts.push(seen.len() as u32);
    }
    let buf = cuda.alloc(Role::Act, u64::from(rows * stride)).expect("memory");
    cuda.upload(buf, 0, Host::F32(&scores)).expect("an upload");
    let (indptr, list) = (indices(&mut cuda, &starts), indices(&mut cuda, &seen));
    let history = Rows { indptr, indices: list, values: Buf::NONE, users: Buf::NONE, first: 0, count: rows };
    let len = (rows * k) as usize;
    let (items, values) = (cuda.alloc(Role::Index, len as u64).expect("memory"), cuda.alloc(Role::Value, len as u64));
    let values = values.expect("memory");
    cuda.top_k(Mat { buf, rows, cols, stride, offset: 0 }, history, k, items, values).expect("a ranking");
    let (mut got, mut best) = (vec![0; len], vec![0.0_f32; len]);
    cuda.download(items, 0, HostMut::U32(&mut got)).expect("a download");
    cuda.download(values, 0, HostMut::F32(&mut best)).expect("a download");

    for r in 0..rows as usize {
        let row = &scores[r * stride as usize..][..cols as usize];
        let held = &seen[starts[r] as usize..starts[r + 1] as usize];
        let mut left: Vec<u32> = (0..cols).filter(|item| held.binary_search(item).is_err()).collect();
        let key = |item: u32| {
            let score = row[item as usize];
            if score.is_nan() { (1, 0.0) } else { (0, -score + 0.0) }
        };
        left.sort_by(|&a, &b| key(a).partial_cmp(&key(b)).expect("no NaN").then(a.cmp(&b)));
        left.resize((k as usize).max(left.len()), u32::MAX);
        left.truncate(k as usize);
        let at = r * k as usize..(r + 1) * k as usize;
        assert!(got[at.clone()] == left, "{precision:?}, {cols} items, k = {k}, row {r}");
        for (&item, &value) in left.iter().zip(&best[at]) {
            let expected = if item == u32::MAX { f32::NEG_INFINITY } else { row[item as usize] };
            assert!(value == expected || value.is_nan() && expected.is_nan(), "{value} for {expected}");
        }
    }
}

#[test]
fn rankings_of_many_items() {
    rank(Precision::F16, 3, 20_108, 100);
    rank(Precision::F32, 2, 20_108, 100);
}

#[test]
fn rankings_in_several_rounds() {
    rank(Precision::F16, 2, 5_003, 2_049);
    rank(Precision::F32, 2, 5_003, 5_000);
}

#[test]
fn rankings_of_rows_that_do_not_fit_in_shared_memory() {
    rank(Precision::F16, 1, 130_001, 100);
    rank(Precision::F32, 1, 70_001, 2_100);
}

/// `users` of whom all hold item 0, half hold item 1, a quarter item 2, and so on.
fn gradient(precision: Precision, users: u32, items: u32, cols: u32) {
    let mut cuda = open(precision);
    let (mut starts, mut list, mut next) = (vec![0], Vec::new(), numbers(7));
    for user in 0..users {
        list.extend((0..items).filter(|&item| user % (1 << item.min(20)) == 0));
        starts.push(list.len() as u32);
    }
    let weights: Vec<f32> = list.iter().map(|_| 0.5 + (next() % 64) as f32 / 64.0).collect();
    let stride = cols.next_multiple_of(8);
    let dy: Vec<f32> =
        (0..users * stride).map(|_| f16::from_f32((next() % 256) as f32 / 128.0 - 1.0).to_f32()).collect();
    let (indptr, indices) = (indices(&mut cuda, &starts), indices(&mut cuda, &list));
    let float = |cuda: &mut Cuda, role, data: &[f32]| {
        let buf = cuda.alloc(role, data.len() as u64).expect("memory");
        cuda.upload(buf, 0, Host::F32(data)).expect("an upload");
        buf
    };
    let values = float(&mut cuda, Role::Value, &weights);
    let from = float(&mut cuda, Role::Act, &dy);
    let len = (items * stride) as usize;
    let to = float(&mut cuda, Role::Grad, &vec![9.0; len + stride as usize]);
    let params = StepParams {
        update: 1,
        first: 0,
        lr: 0.0,
        beta: 0.0,
        grad_factor: 1.0,
        l2: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        correction1: 1.0,
        correction2: 1.0,
    };
    let step = cuda.alloc(Role::Step, 1).expect("memory");
    cuda.upload(step, 0, Host::Step(&params)).expect("an upload");
    let mat = |buf, rows, offset| Mat { buf, rows, cols, stride, offset };
    let rows = Rows { indptr, indices, values, users: Buf::NONE, first: 0, count: users };
    let noise = Noise { seed: 1, stream: 0, keep: 1.0 };
    let (dw, db) = (mat(to, items, 0), mat(to, 1, len as u64));
    cuda.encode_sparse_grad(rows, mat(from, users, 0), noise, step, dw, db).expect("a gradient");
    let mut got = vec![0.0_f32; len];
    cuda.download(to, 0, HostMut::F32(&mut got)).expect("a download");

    let mut expected = vec![(0.0_f64, 0.0_f64); len];
    for user in 0..users as usize {
        let row = starts[user] as usize..starts[user + 1] as usize;
        let norm = weights[row.clone()].iter().map(|w| f64::from(w * w)).sum::<f64>().sqrt();
        for event in row {
            for col in 0..cols as usize {
                let term = f64::from(weights[event]) / norm * f64::from(dy[user * stride as usize + col]);
                let (sum, size) = &mut expected[list[event] as usize * stride as usize + col];
                *sum += term;
                *size += term.abs();
            }
        }
    }
    for item in 0..items as usize {
        for col in 0..cols as usize {
            let (sum, size) = expected[item * stride as usize + col];
            let got = f64::from(got[item * stride as usize + col]);
            assert!((got - sum).abs() <= 1e-5 * size, "item {item}, column {col}: {got} for {sum}");
        }
    }
}

#[test]
fn gradients_of_items_with_very_many_rows() {
    // More rows than a warp lists, than a block lists, and fewer.
    gradient(Precision::F16, 2_500, 20, 150);
    gradient(Precision::F32, 300, 12, 90);
}
