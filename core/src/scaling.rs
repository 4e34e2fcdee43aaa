//! How long a training step takes on many devices, computed from bytes and FLOPs: a forecast, also for machines that are
//! not at hand.
//!
//! A step is the list of calls that a member of the group makes on its share of the batch ([`paper::step`], so the very
//! calls of [`Model::learn`](crate::model::Model::learn)). Each takes what it takes at the device's limits, as in
//! [`crate::roofline`], divided by the share of them that a step attains. Sums over the group take what their bytes take
//! on the links: where the devices make them, beside the calls that follow, until the update needs them; where the hosts
//! do, everything waits. Nothing else is modelled: no contention of sums and products for a device's memory, no stragglers.

use std::fmt;

use serde::Serialize;

use crate::{
    backend::{Ceilings, Info},
    config::ModelConfig,
    device::Device,
    error::{Error, Result},
    evaluate, feed, group,
    layout::Layout,
    paper::{self, Entry},
    roofline::{Cost, Limit},
    trainer::Plan,
};

/// What connects members.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Wire {
    /// Bytes per second in each direction.
    pub rate: f64,
    /// Seconds until a message arrives, however short it is.
    pub latency: f64,
}

/// Who makes the sums of a group.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The devices, beside other work.
    Devices,
    /// The hosts, while everything waits ([`Group::sum`](crate::group::Group::sum)).
    Hosts {
        /// Bytes per second from a device to its host and back; none where the device computes in the host's memory.
        copy: Option<f64>,
    },
}

/// Devices and what connects them.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What a device says of itself: the bytes of its elements.
    pub info: Info,
    /// Whether the logits of the output layer stay out of the device's memory.
    pub fused: bool,
    /// What a device does at best.
    pub limits: Ceilings,
    /// The share of that which a step on one device attains; 1 is the bound.
    pub attained: f64,
    /// Seconds of a step beside its operations: what it takes to start them.
    pub overhead: f64,
    /// Bytes of a device's memory, where known.
    pub memory: Option<u64>,
    /// From one device of a node to another.
    pub within: Wire,
    /// From one node to another, for all devices of a node together.
    pub between: Wire,
    /// Who makes the sums.
    pub path: Path,
}

/// What is to be trained.
#[derive(Clone, Debug)]
pub struct Work {
    /// The model's shape.
    pub config: ModelConfig,
    /// Items of the catalogue.
    pub items: u32,
    /// Users of the training part.
    pub users: u32,
    /// Mean events of a user.
    pub events: f64,
    /// Users of a batch of the whole group.
    pub batch: u32,
    /// Probability to drop an input event.
    pub dropout: f64,
    /// Sums of gradients travel in half precision, where the devices make them.
    pub half: bool,
}

/// What each member has a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// The batch; each has the whole model. This is how the trainer does it.
    #[default]
    Batch,
    /// The items: of the first and of the last layer each has the rows and columns of its items, and sees the whole
    /// batch. Only planned: nothing trains so.
    Items,
}

/// What stays the same as devices are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Growth {
    /// The batch of the group.
    Strong,
    /// The batch of a device.
    Weak,
}

/// What takes the most of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bottleneck {
    /// Products at the device's limit.
    Products,
    /// The device's memory, in what is no update.
    Memory,
    /// The device's memory, in the update of all parameters.
    Adam,
    /// Starting the operations.
    Overhead,
    /// The link within a node.
    Link,
    /// The link between nodes.
    Network,
    /// Copies between device and host.
    Hosts,
    /// The device has too little memory.
    DoesNotFit,
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Products => "products",
            Self::Memory => "memory",
            Self::Adam => "memory (Adam)",
            Self::Overhead => "starting a step",
            Self::Link => "link in a node",
            Self::Network => "link of nodes",
            Self::Hosts => "hosts",
            Self::DoesNotFit => "does not fit",
        })
    }
}

/// Seconds of a step by what they go to; together they are the step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Parts {
    /// Operations that wait for products.
    pub products: f64,
    /// Operations that wait for memory, but for the update.
    pub memory: f64,
    /// The update.
    pub adam: f64,
    /// Starting operations.
    pub overhead: f64,
    /// Waiting for sums.
    pub exposed: f64,
}

impl Parts {
    fn sum(&self) -> f64 {
        self.products + self.memory + self.adam + self.overhead + self.exposed
    }
}

/// A step on a number of devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Devices.
    pub devices: u32,
    /// Nodes they are spread over.
    pub nodes: u32,
    /// Items of the catalogue.
    pub items: u32,
    /// Users of a batch of the whole group.
    pub batch: u32,
    /// Seconds of a step.
    pub seconds: f64,
    /// What they go to.
    pub parts: Parts,
    /// Seconds of all sums, of which `parts.exposed` are waited for; the others pass beside other work.
    pub sums: f64,
    /// What the operations of the busiest member cost.
    pub cost: Cost,
    /// Bytes that all members together send for the sums.
    pub sent: u64,
    /// Users per second.
    pub users_per_second: f64,
    /// Bytes of a device's memory that a run takes.
    pub memory: u64,
    /// Whether these are there, where that is known.
    pub fits: Option<bool>,
    /// What takes the most of a step.
    pub bottleneck: Bottleneck,
}

/// A prediction beside that for one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The step.
    #[serde(flatten)]
    pub prediction: Prediction,
    /// Users per second, in relation to as many times those of one device.
    pub efficiency: f64,
}

/// A sum over a group.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    link: f64,
    network: f64,
    hosts: f64,
    sent: u64,
}

impl Sum {
    fn seconds(self) -> f64 {
        self.link + self.network + self.hosts
    }
}

impl Machine {
    /// A step of the group on `devices` devices, spread evenly over `nodes` nodes.
    ///
    /// # Errors
    /// Where the configuration cannot be a model, there are no users, or less devices than nodes.
    pub fn predict(&self, work: &Work, cut: Cut, devices: u32, nodes: u32) -> Result<Prediction> {
        if nodes == 0 || devices < nodes || work.batch == 0 {
            return Err(Error::usage(format!(
                "{devices} devices on {nodes} nodes, and a batch of {}: there must be one of each at least, and a device \
                 on each node",
                work.batch
            )));
        }
        // Of the member with the largest share.
        let (items, batch, events) = match cut {
            Cut::Batch => (work.items, work.batch.div_ceil(devices), work.events),
            Cut::Items => (work.items.div_ceil(devices), work.batch, work.events / f64::from(devices)),
        };
        let entries = paper::step(&self.info, self.fused, &work.config, items, batch, events, work.dropout)?;
        let (mut parts, mut cost, mut all) =
            (Parts { overhead: self.overhead, ..Parts::default() }, Cost::default(), Sum::default());
        let mut add = |bytes: u64, messages: u64| {
            let sum = self.sum(bytes, messages, devices, nodes);
            all.link += sum.link;
            all.network += sum.network;
            all.hosts += sum.hosts;
            all.sent += sum.sent;
            sum.seconds()
        };
        // When the sums that were begun will be done, by the clock of the operations.
        let (mut now, mut done) = (0.0, 0.0_f64);
        for entry in &entries {
            match entry {
                Entry::Sum { len, .. } if cut == Cut::Batch => {
                    let seconds = add(len * self.element(work.half), len.div_ceil(group::PIECE as u64));
                    match self.path {
                        Path::Devices => done = done.max(now) + seconds,
                        Path::Hosts { .. } => parts.exposed += seconds,
                    }
                }
                Entry::Sum { .. } => {}
                Entry::Call(call) => {
                    let (least, limit) = call.cost.least(self.limits);
                    let seconds = least / self.attained;
                    cost += call.cost;
                    if call.name == "adam" {
                        parts.exposed += (done - now).max(0.0);
                        parts.adam += seconds;
                    } else {
                        match limit {
                            Limit::Products => parts.products += seconds,
                            Limit::Copy => parts.memory += seconds,
                        }
                    }
                    now += seconds;
                }
            }
        }
        if cut == Cut::Items {
            // The first layer's output, the maximum and the sum of each user's softmax, and the gradient of the last
            // layer's input: each is needed at once.
            let layout = Layout::new(&work.config, items, self.info.align)?;
            let first = layout.encoder.first().map_or(0, |layer| layer.weight.cols);
            let last = layout.decoder.last().map_or(0, |layer| layer.weight.rows);
            for numbers in [first, 2, last] {
                parts.exposed += add(u64::from(numbers) * u64::from(batch) * self.info.master.bytes(), 1);
            }
        }
        let seconds = parts.sum();
        let memory = self.needs(work, items, batch, events)?;
        let fits = self.memory.map(|memory_there| memory <= memory_there);
        Ok(Prediction {
            devices,
            nodes,
            items: work.items,
            batch: work.batch,
            seconds,
            parts,
            sums: all.seconds(),
            cost,
            sent: all.sent,
            users_per_second: f64::from(work.batch) / seconds,
            memory,
            fits,
            bottleneck: if fits == Some(false) { Bottleneck::DoesNotFit } else { bottleneck(&parts, all) },
        })
    }

    /// Predictions for several numbers of devices and nodes, each beside that of one device.
    ///
    /// # Errors
    /// As of [`Machine::predict`].
    pub fn table(&self, work: &Work, cut: Cut, growth: Growth, worlds: &[(u32, u32)]) -> Result<Vec<Row>> {
        let one = self.predict(work, cut, 1, 1)?;
        let row = |&(devices, nodes): &(u32, u32)| {
            let batch = match growth {
                Growth::Strong => work.batch,
                Growth::Weak => work.batch.saturating_mul(devices),
            };
            let prediction = self.predict(&Work { batch, ..work.clone() }, cut, devices, nodes)?;
            let efficiency = prediction.users_per_second / (f64::from(devices) * one.users_per_second);
            Ok(Row { prediction, efficiency })
        };
        worlds.iter().map(row).collect()
    }

    /// What it takes to add up `bytes` of each member, which the hosts do in so many pieces.
    fn sum(&self, bytes: u64, pieces: u64, devices: u32, nodes: u32) -> Sum {
        if devices == 1 {
            return Sum::default();
        }
        let (n, m, all) = (f64::from(devices), f64::from(nodes), bytes as f64);
        // Devices of a node.
        let g = f64::from(devices.div_ceil(nodes));
        let sent = 2 * u64::from(devices - 1) * bytes;
        match self.path {
            Path::Devices => {
                // As NCCL does: a ring through all devices, or chains within nodes and a tree of nodes, which sends a
                // little more in fewer steps.
                let slow = nodes > 1 && (nodes == devices || self.between.rate < self.within.rate);
                let rate = if slow { self.between.rate } else { self.within.rate };
                let way = |bytes: f64, near: f64, far: f64| {
                    let (link, network) = if slow { (0.0, bytes / rate) } else { (bytes / rate, 0.0) };
                    let (near, far) = (near * self.within.latency, far * self.between.latency);
                    Sum { link: link + near, network: network + far, hosts: 0.0, sent }
                };
                let crossings = if nodes > 1 { 2.0 * m.min(n - 1.0) } else { 0.0 };
                let ring = way(2.0 * (n - 1.0) / n * all, 2.0 * (n - 1.0) - crossings, crossings);
                let tree = way(2.0 * all, 2.0 * (g - 1.0), 2.0 * m.log2().ceil());
                if tree.seconds() < ring.seconds() { tree } else { ring }
            }
            // Everyone sends everyone else a part, and later its sum.
            Path::Hosts { copy } => {
                let each = 2.0 * all / n;
                let near = (g - 1.0) * each / self.within.rate;
                let far = (n - g) * each * g / self.between.rate;
                let latency = if nodes > 1 { self.between.latency } else { self.within.latency };
                let waits = 2.0 * pieces as f64 * latency;
                let hosts = copy.map_or(0.0, |rate| 2.0 * all / rate);
                match far > near {
                    true => Sum { link: 0.0, network: far + waits, hosts, sent },
                    false => Sum { link: near + waits, network: 0.0, hosts, sent },
                }
            }
        }
    }

    /// Bytes of an element of a gradient on its way.
    fn element(&self, half: bool) -> u64 {
        if half && self.path == Path::Devices { 2 } else { self.info.master.bytes() }
    }

    /// Bytes of a device's memory: the plan of a run that validates.
    fn needs(&self, work: &Work, items: u32, batch: u32, events: f64) -> Result<u64> {
        let (paper, _) = paper::paper(&self.info, events, self.fused);
        let plan = Plan::bare(&Device::new(paper), &work.config, items, work.users, batch, evaluate::BATCH)?;
        let histories = 4 * (u64::from(work.users) + 1) + (4.0 * events * f64::from(work.users)).round() as u64;
        let most = if self.info.host_memory { u64::MAX } else { feed::enough(work.users) };
        Ok(plan.total() + histories.min(most))
    }
}

fn bottleneck(parts: &Parts, sums: Sum) -> Bottleneck {
    let waited = match () {
        () if sums.hosts >= sums.link.max(sums.network) => Bottleneck::Hosts,
        () if sums.network >= sums.link => Bottleneck::Network,
        () => Bottleneck::Link,
    };
    let all = [
        (parts.products, Bottleneck::Products),
        (parts.memory, Bottleneck::Memory),
        (parts.adam, Bottleneck::Adam),
        (parts.overhead, Bottleneck::Overhead),
        (parts.exposed, waited),
    ];
    all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or(Bottleneck::Products, |(_, name)| name)
}
