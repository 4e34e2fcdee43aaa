//! `vaecf plan`: how long a step would take on many devices, and what would bound it.

use std::fmt;

use clap::{Args, ValueEnum};
use serde::Serialize;
use vaecf_benches::scaling;
use vaecf_core::{
    Error, Kind, Result,
    backend::{Backend, Ceilings, Fault, Role},
    config::{Member, ModelConfig, TrainConfig},
    device::Device,
    paper,
    scaling::{Cut, Growth, Machine, Path, Row, Wire, Work},
};

use super::Context;
use crate::{
    backend,
    options::Precision,
    output::{Done, Format, Table, bytes, grouped, print, print_json},
};

/// Compute the time of a training step on many devices: a forecast from bytes, FLOPs and the rates of devices and links
#[derive(Args, Debug)]
#[command(
    long_about = "Compute the time of a training step on many devices: a forecast from bytes, FLOPs and the rates of \
devices and links, which names what bounds it. The rates are the makers' unless given or measured, and what a device \
makes of them is --attained, so all of it is a bound rather than a promise. docs/scaling.md has the formulas.",
    after_help = "Examples:
  vaecf plan                                              1 to 64 H200, three catalogues, strong and weak scaling
  vaecf plan --devices 16 --nodes 2 --device-kind a100 --network ib-hdr --items 1000000
  vaecf plan --batch 24576 --attained 0.7 --half-sums
  vaecf plan --products 300 --bandwidth 2000 --memory 48 --link pcie4 --network 25gbe --adapters 1
  vaecf plan --items 10000000 --cut items                 every device with a part of the items; only planned
  vaecf plan --measure --backend cpu --batch 500          devices like the one of this machine"
)]
pub(crate) struct Plan {
    /// Devices in all; several numbers by commas
    #[arg(long, value_name = "N", default_value = "1,2,4,8,16,32,64", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    devices: Vec<u32>,
    /// Nodes they are spread over; as few as hold them unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,
    /// Devices that a node holds
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    per_node: u32,
    /// A device by its data sheet
    #[arg(long, value_enum, default_value_t)]
    device_kind: DeviceKind,
    /// TFLOP/s of a device's products, in place of the data sheet's
    #[arg(long, value_name = "TFLOP/S", value_parser = positive)]
    products: Option<f64>,
    /// GB/s of a device's memory, read and written together, in place of the data sheet's
    #[arg(long, value_name = "GB/S", value_parser = positive)]
    bandwidth: Option<f64>,
    /// GB of a device's memory, in place of the data sheet's
    #[arg(long, value_name = "GB", value_parser = positive)]
    memory: Option<f64>,
    /// Take limits and memory of the device that --backend, --device and --precision name, and measure what is not given
    #[arg(long, conflicts_with_all = ["device_kind", "products", "bandwidth", "memory"])]
    measure: bool,
    /// Share of its limits that a step on one device attains: `of limit` in what `vaecf bench` prints
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = share)]
    attained: f64,
    /// Microseconds to start the operations of a step; 20 unless given, and none where the host computes
    #[arg(long, value_name = "US", value_parser = positive)]
    overhead: Option<f64>,
    /// Between devices of a node: nvlink2, nvlink3, nvlink4, pcie3, pcie4, pcie5, any of --network, or GB/s in each direction and, if you like, microseconds (`20@5`); the device's own unless given
    #[arg(long, value_name = "LINK", value_parser = wire)]
    link: Option<Wire>,
    /// Between nodes, one adapter: ib-hdr, ib-ndr, 10gbe, 25gbe, 100gbe, 200gbe, 400gbe, or as above
    #[arg(long, value_name = "LINK", default_value = "ib-ndr", value_parser = wire)]
    network: Wire,
    /// Adapters of a node; one for each of its devices unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    adapters: Option<u32>,
    /// Sums pass through the hosts, as with backends that have no collectives of their own: the way from device to host
    #[arg(long, value_name = "LINK", value_parser = wire)]
    hosts: Option<Wire>,
    /// Sums travel in half precision
    #[arg(long, conflicts_with = "hosts")]
    half_sums: bool,
    /// Items of the catalogue; several numbers by commas
    #[arg(long, value_name = "N", default_value = "20108,1000000,10000000", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(2..=2_147_483_647))]
    items: Vec<u32>,
    /// Users of the training part
    #[arg(long, value_name = "N", default_value_t = 116_677, value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    users: u32,
    /// Events of a user in the mean
    #[arg(long, value_name = "N", default_value_t = 73.0, value_parser = positive)]
    events: f64,
    /// Users of a batch: of all devices in strong scaling, of each in weak
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    batch: u32,
    /// Member of the family
    #[arg(long, value_name = "NAME", default_value = "mult-vae", value_parser = member)]
    model: Member,
    /// Units of the hidden layers, from the input on; those of the published model unless given
    #[arg(long, value_name = "UNITS", value_delimiter = ',')]
    hidden: Option<Vec<u32>>,
    /// Units of the latent layer
    #[arg(long, value_name = "UNITS", default_value_t = 200)]
    latent: u32,
    /// What stays the same as devices are added: strong, the batch of all; weak, the batch of each
    #[arg(long, value_enum, default_value = "strong,weak", value_delimiter = ',')]
    scaling: Vec<Scaling>,
    /// What a device has a share of: batch, as `vaecf train` does it; items, which is only planned
    #[arg(long, value_enum, default_value_t)]
    cut: Share,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scaling {
    Strong,
    Weak,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Share {
    #[default]
    Batch,
    Items,
}

/// Devices whose makers say what they do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DeviceKind {
    V100,
    A100,
    H100,
    #[default]
    H200,
    L40s,
}

/// What a data sheet says.
struct Sheet {
    name: &'static str,
    /// TFLOP/s of dense products: f16 and bf16 on tensor cores, tf32, f32.
    products: [Option<f64>; 4],
    /// GB/s, and GB of memory.
    memory: [f64; 2],
    link: &'static str,
}

impl DeviceKind {
    /// NVIDIA's data sheets: V100 (January 2020; SXM2, 32 GB), A100 (June 2021; SXM, 80 GB), H100 (2023; SXM), H200 (2024;
    /// SXM), L40S (2023). Where a sheet gives tensor-core rates with sparsity, dense products are half of that.
    fn sheet(self) -> Sheet {
        let (name, products, memory, link) = match self {
            Self::V100 => ("V100 SXM2", [Some(125.0), None, None, Some(15.7)], [900.0, 32.0], "nvlink2"),
            Self::A100 => ("A100 SXM", [Some(312.0), Some(312.0), Some(156.0), Some(19.5)], [2039.0, 80.0], "nvlink3"),
            Self::H100 => ("H100 SXM", [Some(989.5), Some(989.5), Some(494.5), Some(67.0)], [3350.0, 80.0], "nvlink4"),
            Self::H200 => ("H200 SXM", [Some(989.5), Some(989.5), Some(494.5), Some(67.0)], [4800.0, 141.0], "nvlink4"),
            Self::L40s => ("L40S", [Some(362.0), Some(362.0), Some(183.0), Some(91.6)], [864.0, 48.0], "pcie4"),
        };
        Sheet { name, products, memory, link }
    }
}

/// Links by name: GB/s in each direction and microseconds of a step of a ring.
///
/// NVLink by the data sheets of the devices above, half of the total that these give for both directions; PCIe with 16
/// lanes by PCI-SIG's transfer rates less the coding of lines; networks by their names. Microseconds are those of a ring
/// in NCCL's own model of cost (`hwLat` in its `src/graph/tuning.cc`): 3.4 by NVLink, 5.7 by PCIe, 14 by network.
const LINKS: [(&str, f64, f64); 13] = [
    ("nvlink2", 150.0, 3.4),
    ("nvlink3", 300.0, 3.4),
    ("nvlink4", 450.0, 3.4),
    ("pcie3", 15.75, 5.7),
    ("pcie4", 31.5, 5.7),
    ("pcie5", 63.0, 5.7),
    ("ib-hdr", 25.0, 14.0),
    ("ib-ndr", 50.0, 14.0),
    ("10gbe", 1.25, 14.0),
    ("25gbe", 3.125, 14.0),
    ("100gbe", 12.5, 14.0),
    ("200gbe", 25.0, 14.0),
    ("400gbe", 50.0, 14.0),
];

fn wire(text: &str) -> std::result::Result<Wire, String> {
    let of = |rate: f64, latency: f64| Wire { rate: 1e9 * rate, latency: 1e-6 * latency };
    if let Some(&(_, rate, latency)) = LINKS.iter().find(|(name, ..)| *name == text) {
        return Ok(of(rate, latency));
    }
    let (rate, latency) = text.split_once('@').unwrap_or((text, "10"));
    match (positive(rate), latency.parse::<f64>()) {
        (Ok(rate), Ok(latency)) if latency >= 0.0 && latency.is_finite() => Ok(of(rate, latency)),
        _ => Err(format!("one of {}, or GB/s such as 20 or 20@5", LINKS.map(|(name, ..)| name).join(", "))),
    }
}

fn positive(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "a number above 0".into())
}

fn share(text: &str) -> std::result::Result<f64, String> {
    positive(text).ok().filter(|share| *share <= 1.0).ok_or_else(|| "a number above 0, and 1 at the most".into())
}

fn member(text: &str) -> std::result::Result<Member, String> {
    let names = Member::ALL.map(Member::name);
    Member::ALL.into_iter().find(|member| member.name() == text).ok_or_else(|| format!("one of {}", names.join(", ")))
}

/// All that was computed.
#[derive(Serialize)]
struct Plans {
    /// The device, and where its rates come from.
    device: String,
    precision: String,
    rates: &'static str,
    products: f64,
    bandwidth: f64,
    memory: Option<u64>,
    attained: f64,
    overhead: f64,
    link: Wire,
    /// One adapter, and how many there are.
    network: Wire,
    adapters: u32,
    path: Path,
    cut: Cut,
    users: u32,
    tables: Vec<Scaled>,
}

#[derive(Serialize)]
struct Scaled {
    items: u32,
    parameters: u64,
    growth: Growth,
    rows: Vec<Row>,
}

impl Plan {
    pub(crate) fn run(&self, context: &Context) -> Done {
        let (mut machine, rates) = if self.measure { self.measured(context)? } else { self.by_sheet(context)? };
        let published = ModelConfig::of(self.model);
        let hidden = self.hidden.clone().unwrap_or(published.hidden.clone());
        let config = ModelConfig { hidden, latent: self.latent, ..published };
        let cut = if self.cut == Share::Items { Cut::Items } else { Cut::Batch };
        let worlds =
            self.devices.iter().map(|&devices| Ok((devices, self.spread(devices)?))).collect::<Result<Vec<_>>>()?;
        let most = worlds.iter().map(|&(devices, nodes)| devices.div_ceil(nodes)).max().unwrap_or(1);
        let adapters = self.adapters.unwrap_or(most);
        machine.between = Wire { rate: self.network.rate * f64::from(adapters), ..self.network };
        let mut tables = Vec::new();
        for &items in &self.items {
            let work = Work {
                config: config.clone(),
                items,
                users: self.users,
                events: self.events,
                batch: self.batch,
                dropout: TrainConfig::paper().dropout,
                half: self.half_sums,
            };
            let parameters = vaecf_core::layout::Layout::new(&work.config, items, 1)?.count();
            for scaling in &self.scaling {
                let growth = if *scaling == Scaling::Strong { Growth::Strong } else { Growth::Weak };
                let rows = machine.table(&work, cut, growth, &worlds)?;
                tables.push(Scaled { items, parameters, growth, rows });
            }
        }
        let plans = Plans {
            device: machine.info.device.clone(),
            precision: machine.info.precision.clone(),
            rates,
            products: machine.limits.products,
            bandwidth: machine.limits.copy,
            memory: machine.memory,
            attained: machine.attained,
            overhead: machine.overhead,
            link: machine.within,
            network: self.network,
            adapters,
            path: machine.path,
            cut,
            users: self.users,
            tables,
        };
        match self.format {
            Format::Json => print_json(&plans),
            Format::Table => print(plans),
        }
    }

    /// Nodes that so many devices are on.
    fn spread(&self, devices: u32) -> Result<u32> {
        match self.nodes {
            None => Ok(devices.div_ceil(self.per_node)),
            Some(nodes) if nodes <= devices => Ok(nodes),
            Some(nodes) => {
                Err(Error::usage(format!("--nodes {nodes}: {devices} devices are on {devices} nodes at the most")))
            }
        }
    }

    fn by_sheet(&self, context: &Context) -> Result<(Machine, &'static str)> {
        let sheet = self.device_kind.sheet();
        let precision = context.global.precision;
        let products = match precision {
            Precision::Auto | Precision::F16 => sheet.products[0],
            Precision::Bf16 => sheet.products[1],
            Precision::Tf32 => sheet.products[2],
            Precision::F32 => sheet.products[3],
            Precision::F64 => None,
        };
        let name = if precision == Precision::Auto { "f16" } else { precision.name() };
        let given = self.products.is_some() && self.bandwidth.is_some() && self.memory.is_some();
        let products = self.products.or(products).ok_or_else(|| {
            Error::usage(format!("--precision {name}: the {} has none; choose another, or say --products", sheet.name))
        })?;
        let [bandwidth, memory] = sheet.memory;
        let machine = Machine {
            info: paper::info(if given { "a device as given" } else { sheet.name }, name),
            fused: false,
            limits: Ceilings { copy: 1e9 * self.bandwidth.unwrap_or(bandwidth), products: 1e12 * products },
            attained: self.attained,
            overhead: 1e-6 * self.overhead.unwrap_or(STARTING),
            memory: Some((1e9 * self.memory.unwrap_or(memory)) as u64),
            within: self.link.map_or_else(|| wire(sheet.link), Ok).map_err(Error::failure)?,
            between: self.network,
            path: self.hosts.map_or(Path::Devices, |way| Path::Hosts { copy: Some(way.rate) }),
        };
        Ok((machine, if given { "given" } else { "data sheet" }))
    }

    /// A machine of devices like this one.
    fn measured(&self, context: &Context) -> Result<(Machine, &'static str)> {
        let mut backend = backend::choose(&context.global, &context.ui)?;
        let info = backend.info();
        context.ui.note("measuring the device");
        let limits = backend.ceilings().map_err(|fault| match fault {
            Fault::Unsupported(_) => Error::usage(format!(
                "--measure: the {} backend does not say what its device does at best; give --products and --bandwidth instead",
                info.name
            )),
            fault => fault.into(),
        })?;
        let path = match (self.hosts, backend.invite(0)) {
            (Some(way), _) => Path::Hosts { copy: Some(way.rate) },
            (None, Ok(_)) => Path::Devices,
            (None, Err(_)) if info.host_memory => Path::Hosts { copy: None },
            (None, Err(_)) => Path::Hosts { copy: Some(copy_rate(backend)?) },
        };
        let within = match (self.link, path) {
            (Some(link), _) => link,
            (None, Path::Hosts { .. }) => scaling::between_threads()?,
            (None, Path::Devices) => {
                return Err(Error::new(
                    Kind::Usage,
                    "--measure: the way between devices cannot be measured with one; say what it is with --link",
                ));
            }
        };
        let overhead = 1e-6 * self.overhead.unwrap_or(if info.host_memory { 0.0 } else { STARTING });
        let (fused, memory) = (info.host_memory, info.memory);
        let machine = Machine {
            info,
            fused,
            limits,
            attained: self.attained,
            overhead,
            memory,
            within,
            between: self.network,
            path,
        };
        Ok((machine, "measured"))
    }
}

/// Microseconds to start the operations of a step that is replayed: a dozen of them, some two kernels each, of which one
/// waits about a microsecond for another.
const STARTING: f64 = 20.0;

/// Bytes per second from a device to its host.
fn copy_rate(backend: Box<dyn Backend>) -> Result<f64> {
    const LEN: usize = 1 << 24;
    let device = Device::new(backend);
    let buffer = device.alloc(Role::Grad, LEN as u64)?;
    let mut values = vec![0.0_f32; LEN];
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = std::time::Instant::now();
        buffer.download(0, vaecf_core::backend::HostMut::F32(&mut values))?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(4.0 * LEN as f64 / best)
}

impl fmt::Display for Plans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "A forecast, not a measurement: what bytes and FLOPs take at these rates, and no less.\n")?;
        let giga = |rate: f64| format!("{:.4}", rate / 1e9).trim_end_matches('0').trim_end_matches('.').to_owned();
        writeln!(
            f,
            "device    {} in {}: {} TFLOP/s of products, {} GB/s of memory, {}; {}",
            self.device,
            self.precision,
            giga(self.products / 1e3),
            giga(self.bandwidth),
            self.memory.map_or_else(|| "memory unknown".into(), bytes),
            self.rates
        )?;
        writeln!(
            f,
            "step      {:.0} % of these rates, and {:.0} us to start it",
            100.0 * self.attained,
            1e6 * self.overhead
        )?;
        let way = |Wire { rate, latency }: Wire| format!("{} GB/s, {:.1} us", giga(rate), 1e6 * latency);
        writeln!(f, "links     in a node {}; between nodes {} x {}", way(self.link), self.adapters, way(self.network))?;
        let sums = match self.path {
            Path::Devices => "by the devices, beside other work".into(),
            Path::Hosts { copy: None } => "by the hosts, in their memory, while all waits".into(),
            Path::Hosts { copy: Some(rate) } => {
                format!("by the hosts, which are {} GB/s away, while all waits", giga(rate))
            }
        };
        writeln!(f, "sums      {sums}")?;
        if self.cut == Cut::Items {
            writeln!(
                f,
                "cut       each device has a part of the items and sees the whole batch: nothing trains so yet"
            )?;
        }
        let mut beyond = false;
        for Scaled { items, parameters, growth, rows } in &self.tables {
            let growth = match growth {
                Growth::Strong => "strong scaling, one batch for all",
                Growth::Weak => "weak scaling, a batch for each",
            };
            writeln!(
                f,
                "\n{} items, {:.1} M parameters; {growth}",
                grouped((*items).into()),
                *parameters as f64 / 1e6
            )?;
            let mut table = Table::titled([
                "devices",
                "nodes",
                "batch",
                "us a step",
                "products",
                "memory",
                "adam",
                "waiting",
                "of sums",
                "users/s",
                "efficiency",
                "a device",
                "bound by",
            ]);
            for Row { prediction: p, efficiency } in rows {
                let us = |seconds: f64| grouped((1e6 * seconds).round() as u64);
                beyond |= p.batch > self.users;
                table.row([
                    p.devices.to_string(),
                    p.nodes.to_string(),
                    grouped(p.batch.into()),
                    us(p.seconds),
                    us(p.parts.products),
                    us(p.parts.memory),
                    us(p.parts.adam),
                    us(p.parts.exposed),
                    us(p.sums),
                    grouped(p.users_per_second.round() as u64),
                    format!("{:.0} %", 100.0 * efficiency),
                    bytes(p.memory),
                    p.bottleneck.to_string(),
                ]);
            }
            write!(f, "{table}")?;
        }
        if beyond {
            writeln!(
                f,
                "\nA batch of more than the {} users there are is one of more data.",
                grouped(self.users.into())
            )?;
        }
        Ok(())
    }
}
