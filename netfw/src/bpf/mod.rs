//! The data plane in the kernel, as user space holds it: programs, pins, links, maps.
//!
//! Everything that matters is pinned, so a [`DataPlane`] is only a grip on it: dropping one, or
//! dying with one, changes nothing for packets. Loading finds the maps that are pinned and puts new
//! programs over them; attaching swaps programs within the links that are there.
//!
//! One process at a time may hold an instance's data plane; the agent sees to that with its lock.
//! Operations block, for microseconds mostly, and never wait for anything but the kernel.
//!
//! | file | what |
//! |---|---|
//! | `load` | the object, checked against what is pinned |
//! | `attach` | links on interfaces: TCX, or clsact |
//! | `carry` | an older layout's data plane, taken over |
//! | `xdp` | XDP on interfaces |
//! | `napi` | the veths that XDP may send to |
//! | `cgroup` | socket programs on the root cgroup |
//! | `lookup` | which socket a DNS query to a gateway is for |
//! | `btf` | where the kernel keeps what they have no helper for |
//! | `trial` | what the kernel can do, tried out |
//! | `insn` | instructions, for programs of a few |
//! | `company` | what else is on an interface's hooks |
//! | `pin` | the directories in bpffs |
//! | `family` | what the maps of IPv4 and IPv6 have in common |
//! | `table` | a hash map, by batches |
//! | `allow` | lists of sources that may use a publish |
//! | `maps` | endpoints, publishes, subnets, …, counters |
//! | `taken` | ports that the node's processes may not bind |
//! | `flows` | the flow tables |
//! | `holdings` | who has how much of them |
//! | `events` | single packets, told to whoever listens |
//! | `traced` | programs that tell of every packet, in the place of the others |
//! | `stats` | what the programs cost |
//! | `sys` | the only raw `bpf(2)` |

mod allow;
mod attach;
mod btf;
mod carry;
mod cgroup;
mod company;
mod error;
mod events;
mod family;
mod flows;
mod holdings;
mod insn;
mod load;
mod lookup;
mod maps;
mod napi;
mod pin;
mod sockets;
mod stats;
mod sys;
mod table;
mod taken;
mod traced;
mod trial;
mod xdp;

use aya::Ebpf;
use netfw_common::record::Config;

pub use self::{
    attach::{Attachment, Hook, name_of as interface_name},
    carry::{Change, Convert, STEPS, Step},
    cgroup::mounted as cgroup_root,
    company::{At, OnHook, on_hooks},
    error::BpfError,
    events::{Filters, PacketEvents, epoch_of_events},
    family::Family,
    flows::{FlowWalk, Part, Visit, now},
    load::PROGRAMS_OBJECT,
    lookup::Lookup,
    maps::Epoch,
    pin::{BPFFS, is_mounted as is_bpffs_mounted},
    sockets::Connected,
    stats::{ProgramStats, enable_stats},
    traced::Traced,
    trial::{Attached, Features, Tried, features},
    xdp::XdpMode,
};

/// What a data plane is loaded with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the pins; no dots.
    pub instance: String,
    /// Assured flows that there is room for. The table is preallocated.
    pub max_flows: u32,
    /// Embryonic ones.
    pub max_embryos: u32,
    /// What the programs log; None: nothing, at no cost.
    pub log_level: Option<log::Level>,
    pub config: Config,
    /// How an older layout's maps become these: [`STEPS`], but for tests.
    pub steps: &'static [Step],
}

/// The data plane of one instance.
pub struct DataPlane {
    ebpf: Ebpf,
    /// What runs in the place of `ebpf`, while somebody traces.
    traced: Option<Traced>,
    /// Until somebody takes them.
    watch: Option<(Filters, PacketEvents)>,
    pins: pin::Pins,
    maps: maps::Maps,
    flows: flows::Flows,
    only: Option<Attachment>,
    /// Why the kernel does not take the XDP program, once it was asked and does not.
    xdp_refused: Option<String>,
}

impl DataPlane {
    /// Loads the programs over the maps that are pinned, or makes those. Attaches nothing: programs
    /// that are attached stay what they are until `attach_*` swaps them. But the data plane of an older
    /// layout is carried over, its programs swapped and its pins removed.
    pub fn load(options: &Options) -> Result<Self, BpfError> {
        let pins = pin::Pins::of(&options.instance)?;
        let older = carry::older(&pins)?;
        let fresh = !pins.own().is_used();
        let loaded = pins
            .prepare()
            .and_then(|()| Self::load_pinned(options, &pins, &older));
        if loaded.is_err() && fresh {
            // Nothing of this layout was there before; so nothing stays.
            pins.remove_own();
        }
        let mut plane = loaded?;
        for layout in &older {
            plane.take_over(options.steps, layout)?;
        }
        plane.flows.recount(!older.is_empty())?;
        Ok(plane)
    }

    fn load_pinned(
        options: &Options,
        pins: &pin::Pins,
        older: &[pin::Layout],
    ) -> Result<Self, BpfError> {
        let new = carry::missing(pins);
        let mut ebpf = load::load(options, pins, older, false)?;
        for layout in older {
            carry::convert(options.steps, layout, pins, &new)?;
        }
        let mut plane = Self {
            maps: maps::Maps::take(&mut ebpf)?,
            traced: None,
            watch: Some((Filters::take(&mut ebpf)?, PacketEvents::take(&mut ebpf)?)),
            flows: flows::Flows::take(&mut ebpf)?,
            pins: pins.clone(),
            only: None,
            xdp_refused: None,
            ebpf,
        };
        plane.set_config(&options.config)?;
        Ok(plane)
    }

    /// Fails where a data plane is there that can neither be taken over nor have ours attached beside it.
    pub fn check_layout(instance: &str) -> Result<(), BpfError> {
        carry::older(&pin::Pins::of(instance)?).map(drop)
    }

    /// Is anything of this instance in the kernel, such as an agent that died leaves?
    pub fn exists(instance: &str) -> bool {
        pin::Pins::of(instance).is_ok_and(|pins| pins.exist())
    }

    /// The socket programs of the instance that are not attached.
    pub fn missing_sockets(instance: &str) -> Result<Vec<&'static str>, BpfError> {
        Ok(cgroup::missing(&pin::Pins::of(instance)?.links()))
    }

    /// Removes all of the instance: links, maps, directories, of any layout version, past whatever is
    /// missing. Filters under clsact are found only from within the node's namespace.
    pub fn remove(instance: &str) -> Result<(), Vec<BpfError>> {
        let pins = pin::Pins::of(instance).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        for layout in pins.layouts() {
            let links = layout.links();
            errors.extend(cgroup::detach(&links));
            for ifindex in attach::pinned(&links) {
                errors.extend(attach::detach(&links, ifindex));
            }
        }
        errors.extend(pins.remove());
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    /// Leaves no choice of how programs are attached: for tests of the way that this kernel would
    /// not take.
    pub fn attach_only(&mut self, way: Attachment) {
        self.only = Some(way);
    }

    /// What comes in, and the guard on what goes out. In place of our programs that are there.
    pub fn attach_uplink(&mut self, ifindex: u32, name: &str) -> Result<Attachment, BpfError> {
        // The guard first: no packet is let in whose answers it would not watch.
        self.attach(Hook::Guard, ifindex, name)?;
        self.attach(Hook::Uplink, ifindex, name)
    }

    /// As [`Self::attach_uplink`], on an interface whose frames have no Ethernet header.
    pub fn attach_tunnel(&mut self, ifindex: u32, name: &str) -> Result<Attachment, BpfError> {
        self.attach(Hook::Guard, ifindex, name)?;
        self.attach(Hook::Tunnel, ifindex, name)
    }

    /// The guard alone, on an interface whose frames the other programs cannot read.
    pub fn attach_guard(&mut self, ifindex: u32, name: &str) -> Result<Attachment, BpfError> {
        self.attach(Hook::Guard, ifindex, name)
    }

    /// What a container sends, on the host side of its veth pair.
    pub fn attach_container(&mut self, ifindex: u32, name: &str) -> Result<Attachment, BpfError> {
        self.attach(Hook::Container, ifindex, name)
    }

    /// The sockets of the node's own processes, on the whole machine's root cgroup.
    pub fn attach_sockets(&mut self) -> Result<(), BpfError> {
        let links = self.pins.links();
        cgroup::attach(self.running(), &links)
    }

    /// Has somebody taken one of them off?
    pub fn lacks_socket_program(&self) -> bool {
        cgroup::lacks_program(&self.pins.links())
    }

    fn attach(&mut self, hook: Hook, ifindex: u32, name: &str) -> Result<Attachment, BpfError> {
        let (links, only) = (self.pins.links(), self.only);
        attach::attach(self.running(), &links, hook, ifindex, name, only)
    }

    /// Who wants to be told of packets, and what there is to tell; for one taker.
    pub fn take_watch(&mut self) -> Option<(Filters, PacketEvents)> {
        self.watch.take()
    }

    /// Has somebody taken a program of ours off the interface?
    pub fn lacks_program(&self, ifindex: u32) -> bool {
        attach::lacks_program(&self.pins.links(), ifindex)
    }

    /// Takes our programs off an interface, which may be gone already. Goes on past errors and
    /// returns the first.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), BpfError> {
        match attach::detach(&self.pins.links(), ifindex)
            .into_iter()
            .next()
        {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// The interfaces with a program of ours, in order. Pins of interfaces that are gone are removed
    /// on the way.
    pub fn attached(&self) -> Vec<u32> {
        attach::attached(&self.pins.links())
    }
}
