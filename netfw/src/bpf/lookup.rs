//! The agent's name servers: which socket gets what is sent to port 53 of a network's gateway.
//!
//! The program is on the node's network namespace, where the kernel asks it before it looks for
//! sockets that are bound to the port. Its link, the map of gateways and that of sockets are not
//! pinned: they go with the [`Lookup`], and a query then finds what it would find without netfw.
//!
//! A kernel before 5.17 cannot tell the program what a packet came in on (f89315650ba3), and refuses it;
//! one before 5.9 knows no such programs. A `Lookup` then hands nothing to anybody, and says so: name
//! servers have to bind port 53 themselves.

use std::{
    collections::HashMap,
    fs::File,
    net::IpAddr,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use aya::{
    maps::{MapData, SockMap},
    programs::{ProgramError, SkLookup, sk_lookup::SkLookupLink},
};
use netfw_common::{
    addr::{Ip4, Ip6},
    record::{Resolver, ResolverKey},
};

use super::{
    BpfError, DataPlane,
    table::{Table, take},
};

pub(super) const PROGRAM: &str = "netfw_resolver";
const SOCKETS: &str = "RESOLVER_SOCKETS";

/// Hands queries to sockets, for as long as it lives.
pub struct Lookup(Option<Attached>);

struct Attached {
    resolvers: Table<ResolverKey, Resolver>,
    sockets: SockMap<MapData>,
    /// The elements of `sockets` that are in use, by what they are for.
    indexes: HashMap<ResolverKey, u32>,
    _link: SkLookupLink,
}

impl DataPlane {
    /// Attaches the program to the calling thread's network namespace, if the kernel takes it: see
    /// [`Lookup::is_attached`]. Once for each data plane: a second call fails.
    pub fn attach_lookup(&mut self) -> Result<Lookup, BpfError> {
        let failed = |source: ProgramError| BpfError::AttachLookup {
            program: PROGRAM,
            source: Box::new(source),
        };
        let lacks = || BpfError::Lacks {
            kind: "program",
            name: PROGRAM,
        };
        let resolvers = Table::take(&mut self.ebpf, "RESOLVERS")?;
        let sockets = take(&mut self.ebpf, SOCKETS)?;
        let program = self.ebpf.program_mut(PROGRAM).ok_or_else(lacks)?;
        let program: &mut SkLookup = program.try_into().map_err(|_| lacks())?;
        if let Err(error) = program.load() {
            if matches!(error, ProgramError::AlreadyLoaded) {
                return Err(failed(error));
            }
            // The verifier's log is long.
            tracing::warn!(
                program = PROGRAM,
                "this kernel takes no program that chooses sockets: name servers need port 53"
            );
            tracing::debug!(program = PROGRAM, %error, "not loaded");
            return Ok(Lookup::none());
        }
        let netns = File::open("/proc/thread-self/ns/net")
            .map_err(|error| failed(ProgramError::IOError(error)))?;
        let link = program
            .attach(&netns)
            .and_then(|id| program.take_link(id))
            .map_err(failed)?;
        Ok(Lookup(Some(Attached {
            resolvers,
            sockets,
            indexes: HashMap::new(),
            _link: link,
        })))
    }
}

impl Lookup {
    /// As on a kernel that does not take the program.
    pub fn none() -> Self {
        Self(None)
    }

    /// Does it hand over anything? If not, a socket has to be bound to port 53.
    pub fn is_attached(&self) -> bool {
        self.0.is_some()
    }

    /// Has `socket` receive what comes in on `bridge` to port 53 of `gateway` by this protocol. The
    /// socket must be bound, and listening if it is one of TCP.
    pub fn serve(
        &mut self,
        gateway: IpAddr,
        proto: u8,
        bridge: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), BpfError> {
        let Some(attached) = &mut self.0 else {
            return Ok(());
        };
        attached.serve(key(gateway, proto), bridge, socket)
    }

    /// Nothing more for this one. The socket may be closed already.
    pub fn withdraw(&mut self, gateway: IpAddr, proto: u8) -> Result<(), BpfError> {
        match &mut self.0 {
            Some(attached) => attached.withdraw(&key(gateway, proto)),
            None => Ok(()),
        }
    }
}

impl Attached {
    fn serve(
        &mut self,
        key: ResolverKey,
        bridge: u32,
        socket: BorrowedFd<'_>,
    ) -> Result<(), BpfError> {
        let index = match self.indexes.get(&key) {
            Some(&index) => index,
            None => self.free()?,
        };
        self.sockets
            .set(index, &socket.as_raw_fd(), 0)
            .map_err(BpfError::map(SOCKETS, "write"))?;
        // From here on there are packets for it.
        self.resolvers.insert(
            &key,
            &Resolver {
                bridge,
                socket: index,
            },
        )?;
        self.indexes.insert(key, index);
        Ok(())
    }

    fn withdraw(&mut self, key: &ResolverKey) -> Result<(), BpfError> {
        self.resolvers.remove(key)?;
        if let Some(index) = self.indexes.remove(key) {
            // An error says that the socket is closed: the kernel has taken it out.
            let _ = self.sockets.clear_index(&index);
        }
        Ok(())
    }

    /// The lowest index that nothing has.
    fn free(&self) -> Result<u32, BpfError> {
        let mut taken: Vec<u32> = self.indexes.values().copied().collect();
        taken.sort_unstable();
        let free = (0..).zip(&taken).take_while(|(n, taken)| n == *taken);
        let index = free.count() as u32;
        if index < self.resolvers.max {
            Ok(index)
        } else {
            Err(BpfError::Full {
                map: SOCKETS,
                asked: 1,
                max: self.resolvers.max,
            })
        }
    }
}

fn key(gateway: IpAddr, proto: u8) -> ResolverKey {
    ResolverKey {
        addr: match gateway {
            IpAddr::V4(addr) => Ip6::from_mapped(Ip4::from(addr)),
            IpAddr::V6(addr) => Ip6::from(addr),
        },
        proto: proto.into(),
    }
}
