//! The bench on a device that is none: memory of its own, captures, a clock.

use vaecf_benches::{
    run::{Options, run},
    synthetic::{self, Shape},
};
use vaecf_core::{
    Result,
    backend::{self, Backend, Buf, Fault, Info, Mark, Role},
    config::ModelConfig,
    forward_backend,
};
use vaecf_cpu::Cpu;
use vaecf_tests::{Recorded, Summed};

/// Counts the bytes of floats that it gives out.
struct Apart {
    inner: Cpu<f32>,
    given: u64,
    clock: bool,
}

impl Backend for Apart {
    forward_backend! { self, self.inner;
        free upload download sync
        encode_sparse encode_sparse_grad linear linear_grad_weight linear_grad_input
        sample_latent sample_latent_grad likelihood adam top_k
        logits_rows decode_loss_grad recommend seconds
    }

    fn info(&self) -> Info {
        let memory = Some((8_u64 << 30).saturating_sub(self.given));
        Info { host_memory: false, memory, ..self.inner.info() }
    }

    fn alloc(&mut self, role: Role, len: u64) -> backend::Result<Buf> {
        self.given += 4 * len;
        self.inner.alloc(role, len)
    }

    fn mark(&mut self) -> backend::Result<Mark> {
        if self.clock { self.inner.mark() } else { Err(Fault::Unsupported("mark")) }
    }
}

fn options() -> Options {
    Options {
        precisions: vec!["f32".into()],
        batches: vec![20, 50],
        steps: Some(3),
        rounds: 1,
        k: 5,
        group_of_one: true,
        threads: 1,
        python: None,
        peer_options: Vec::new(),
    }
}

#[test]
fn a_device_is_measured_with_and_without_a_clock() {
    let matrix = synthetic::matrix(Shape { users: 200, items: 60, events: 3000 }, 1).unwrap();
    let config = ModelConfig { hidden: vec![24], latent: 8, ..ModelConfig::default() };
    for clock in [true, false] {
        let open = |_: &str| -> Result<Box<dyn Backend>> {
            Ok(Box::new(Recorded::new(Summed::new(Apart { inner: Cpu::new(Some(1))?, given: 0, clock }))))
        };
        let figures = run(open, &config, &matrix, &options()).unwrap();
        assert_eq!(figures.settings.iter().map(|s| s.batch).collect::<Vec<_>>(), [20, 50]);
        for setting in &figures.settings {
            assert!(setting.eager.is_some_and(|eager| eager.median > 0.0) && setting.ours.train.median > 0.0);
            assert!(setting.group_of_one.is_some_and(|grouped| grouped.median > 0.0));
            // The plan is right to a tenth: what it leaves out are the small buffers.
            let (planned, used) = (setting.memory.planned as f64, setting.memory.used.unwrap() as f64);
            assert!((used / planned - 1.0).abs() < 0.1, "{planned} planned, {used} used");
            let calls = |name: &str| {
                let all = setting.training.iter().chain(&setting.inference).filter(|o| o.name == name);
                all.map(|o| o.calls).sum::<f64>()
            };
            assert_eq!([calls("adam"), calls("recommend"), calls("encode_sparse")], [1.0, 1.0, 2.0]);
            assert!(setting.training.iter().all(|o| o.milliseconds > 0.0 && o.attained.is_none()));
            // No limits are told, so there is none to compare with.
            assert!(setting.step.least.is_none() && setting.gemm.is_none());
        }
        let table = figures.to_string();
        assert!(table.contains("call by call") && table.contains("in a group of one / without"), "{table}");
    }
}
