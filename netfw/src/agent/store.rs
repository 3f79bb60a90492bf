//! The store: the wanted state on disk, in one redb file.
//!
//! One table a kind of record, keys are names, values JSON. Every [`Store::commit`] is one
//! transaction and is on disk when it returns: a change is here before it is in the kernel, so
//! whatever instant the agent dies at, the next start finds the state before or after it.

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};

use super::record::{Endpoint, Network, Node, Wanted};
use crate::name::Name;

/// Version of the records. A store of a newer version is refused, not guessed at; one of an older is read,
/// and becomes one of this. 2: endpoints have attachments. 3: they may say who
/// uses their publishes, which an older netfw would let everybody do.
pub const VERSION: u32 = 3;

const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
const NETWORKS: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("networks");
const ENDPOINTS: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("endpoints");

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "the store {path} cannot be opened: {source}. What is in the kernel goes on as it is; \
         `netfw store check` tells more, `netfw store import` puts a saved store in its place, \
         `netfw down` removes all that can be found"
    )]
    Open {
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error(
        "the store {path} is lost (there is none, or it is empty), but what it is about is in the kernel, and goes \
         on as it is: `netfw store import` puts a saved store there, `netfw down` removes all that can be found"
    )]
    Lost { path: PathBuf },
    #[error("the directory {path} cannot be made or written to: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "the store {path} was closed after trouble with the disk, and cannot be opened again: {source}. \
         Nothing is changed until it can"
    )]
    Closed {
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error(
        "the store {path} is damaged: `netfw store export --salvage` saves what can be read, `netfw store \
         import` makes a sound one of that"
    )]
    Damaged { path: PathBuf },
    #[error("the store {path} cannot be read or written: {source}")]
    Access {
        path: PathBuf,
        source: Box<redb::Error>,
    },
    #[error(
        "the store {path} has version {found}, this netfw knows {VERSION}: use the netfw that wrote it"
    )]
    Version { path: PathBuf, found: u32 },
    #[error(
        "the store {path} has a record {key:?} that cannot be read: {source}. What is in the kernel goes \
         on as it is; `netfw store export --salvage` saves the other records"
    )]
    Record {
        path: PathBuf,
        key: String,
        source: serde_json::Error,
    },
}

/// One step of a transaction.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Node(&'a Node),
    Network(&'a Network),
    NoNetwork(&'a Name),
    Endpoint(&'a Endpoint),
    NoEndpoint(&'a Name),
}

pub struct Store {
    /// None after trouble with the disk: redb takes nothing more then, not even when there is room again.
    /// The next access opens it anew.
    database: Option<Database>,
    /// What was there before the commit that failed so. It may be on disk all the same, where only the
    /// flush failed; it is taken back before anything else.
    doubtful: Vec<Before>,
    path: PathBuf,
}

/// A table, a key in it, and its value; none where it had none.
type Before = (
    TableDefinition<'static, &'static str, &'static [u8]>,
    String,
    Option<Vec<u8>>,
);

impl StoreError {
    fn directory_of(path: &Path, source: io::Error) -> Self {
        Self::Directory {
            path: path.parent().unwrap_or(path).to_owned(),
            source,
        }
    }
}

/// It may be gone already.
fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::directory_of(path, error))
        }
        _ => Ok(()),
    }
}

impl Store {
    /// Opens the store, or makes one, which is there at once or not at all: a file that redb has only begun
    /// is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            Self::replace(path, &Wanted::default())?;
        }
        Self::at(path)
    }

    /// For an instance whose data plane runs: without what is wanted of it, all of it would be taken for
    /// leftovers.
    pub fn must_exist(path: &Path) -> Result<(), StoreError> {
        let lost = || StoreError::Lost {
            path: path.to_owned(),
        };
        match path.metadata() {
            // As a disk may leave it that lost its power: redb would begin anew.
            Ok(file) if file.len() == 0 => Err(lost()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(lost()),
            Err(source) => Err(StoreError::directory_of(path, source)),
        }
    }

    fn at(path: &Path) -> Result<Self, StoreError> {
        if let Some(parent) = path.parent() {
            // Who may use what, and what is where, is not for everybody.
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(parent)
                .map_err(|source| StoreError::Directory {
                    path: parent.to_owned(),
                    source,
                })?;
        }
        let database = Database::create(path).map_err(|e| StoreError::Open {
            path: path.to_owned(),
            source: Box::new(e.into()),
        })?;
        let mut store = Self {
            database: Some(database),
            doubtful: Vec::new(),
            path: path.to_owned(),
        };
        store.check_version()?;
        Ok(store)
    }

    /// Where it is, if the disk was in trouble when it was last written to, and nobody has written to it since.
    pub fn is_closed(&self) -> Option<&Path> {
        self.database.is_none().then_some(&self.path)
    }

    fn access(&self, source: impl Into<redb::Error>) -> StoreError {
        StoreError::Access {
            path: self.path.clone(),
            source: Box::new(source.into()),
        }
    }

    fn database(&mut self) -> Result<&Database, StoreError> {
        let database = match self.database.take() {
            Some(database) => database,
            None => {
                // No other in its place: without a file it fails.
                let opened = Database::open(&self.path).map_err(redb::Error::from);
                let opened = opened.and_then(|database| {
                    take_back(&database, &self.doubtful)?;
                    Ok(database)
                });
                opened.map_err(|source| StoreError::Closed {
                    path: self.path.clone(),
                    source: Box::new(source),
                })?
            }
        };
        self.doubtful.clear();
        Ok(self.database.insert(database))
    }

    fn begin_write(&mut self) -> Result<WriteTransaction, StoreError> {
        let begun = self.database()?.begin_write();
        begun.map_err(|e| self.access(e))
    }

    fn check_version(&mut self) -> Result<(), StoreError> {
        let transaction = self.begin_write()?;
        let found: Option<u32> = {
            let mut table = transaction.open_table(META).map_err(|e| self.access(e))?;
            // Opened so that they exist: readers need not tell empty from missing.
            transaction
                .open_table(NETWORKS)
                .map_err(|e| self.access(e))?;
            transaction
                .open_table(ENDPOINTS)
                .map_err(|e| self.access(e))?;
            let found = match table.get("version").map_err(|e| self.access(e))? {
                Some(value) => Some(self.decode("version", value.value())?),
                None => None,
            };
            if found.is_none_or(|found| found < VERSION) {
                table
                    .insert("version", VERSION.to_string().as_bytes())
                    .map_err(|e| self.access(e))?;
            }
            found
        };
        match found {
            Some(VERSION) => Ok(()),
            Some(found) if found > VERSION => Err(StoreError::Version {
                path: self.path.clone(),
                found,
            }),
            _ => transaction.commit().map_err(|e| self.access(e)),
        }
    }

    fn decode<T: DeserializeOwned>(&self, key: &str, bytes: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(bytes).map_err(|source| StoreError::Record {
            path: self.path.clone(),
            key: key.to_owned(),
            source,
        })
    }

    pub fn load(&mut self) -> Result<Wanted, StoreError> {
        self.read(Err)
    }

    /// `unreadable` is asked about each record that cannot be read: leave it out, or give up.
    fn read(
        &mut self,
        mut unreadable: impl FnMut(StoreError) -> Result<(), StoreError>,
    ) -> Result<Wanted, StoreError> {
        let begun = self.database()?.begin_read();
        let transaction = begun.map_err(|e| self.access(e))?;
        let mut wanted = Wanted::default();
        let meta = transaction.open_table(META).map_err(|e| self.access(e))?;
        if let Some(value) = meta.get("node").map_err(|e| self.access(e))? {
            match self.decode("node", value.value()) {
                Ok(node) => wanted.node = Some(node),
                Err(error) => unreadable(error)?,
            }
        }
        for network in self.records::<Network>(&transaction, NETWORKS)? {
            match network {
                Ok(network) => {
                    wanted.networks.insert(network.name.clone(), network);
                }
                Err(error) => unreadable(error)?,
            }
        }
        for endpoint in self.records::<Endpoint>(&transaction, ENDPOINTS)? {
            match endpoint {
                Ok(endpoint) => {
                    wanted.endpoints.insert(endpoint.name.clone(), endpoint);
                }
                Err(error) => unreadable(error)?,
            }
        }
        Ok(wanted)
    }

    /// All of a table; what is wrong with a record is in its place.
    fn records<T: DeserializeOwned>(
        &self,
        transaction: &ReadTransaction,
        table: TableDefinition<'_, &str, &[u8]>,
    ) -> Result<Vec<Result<T, StoreError>>, StoreError> {
        let table = transaction.open_table(table).map_err(|e| self.access(e))?;
        let mut records = Vec::new();
        for entry in table.iter().map_err(|e| self.access(e))? {
            let (key, value) = entry.map_err(|e| self.access(e))?;
            records.push(self.decode(key.value(), value.value()));
        }
        Ok(records)
    }

    /// What the store at `path` wants, without those records that cannot be read, and why they cannot. The
    /// file stays as it is: a copy is looked into.
    pub fn examine(path: &Path) -> Result<(Wanted, Vec<StoreError>), StoreError> {
        let io = |source: io::Error| StoreError::Access {
            path: path.to_owned(),
            source: Box::new(redb::Error::Io(source)),
        };
        let directory = tempfile::tempdir().map_err(io)?;
        let copy = directory.path().join("state.redb");
        std::fs::copy(path, &copy).map_err(io)?;
        let open = |e: redb::DatabaseError| StoreError::Open {
            path: path.to_owned(),
            source: Box::new(e.into()),
        };
        let mut database = Database::open(&copy).map_err(open)?;
        let mut broken = Vec::new();
        if !database.check_integrity().map_err(open)? {
            broken.push(StoreError::Damaged {
                path: path.to_owned(),
            });
        }
        drop(database);
        // Errors name the file that they are about.
        let mut store = Self {
            database: Some(Database::open(&copy).map_err(open)?),
            doubtful: Vec::new(),
            path: path.to_owned(),
        };
        store.check_version()?;
        let wanted = store.read(|error| {
            broken.push(error);
            Ok(())
        })?;
        Ok((wanted, broken))
    }

    /// Puts a store of `wanted` in the place of that at `path`, at once; returns where that is now, if there
    /// was one. Nobody else may have it open.
    pub fn replace(path: &Path, wanted: &Wanted) -> Result<Option<PathBuf>, StoreError> {
        let new = path.with_extension("redb.new");
        remove_file(&new)?;
        let replaced = Self::put_in_place(path, &new, wanted);
        if replaced.is_err() {
            // Where the disk is full, it is not to be the fuller for that.
            remove_file(&new)?;
        }
        replaced
    }

    fn put_in_place(
        path: &Path,
        new: &Path,
        wanted: &Wanted,
    ) -> Result<Option<PathBuf>, StoreError> {
        let failed = |source| StoreError::directory_of(path, source);
        let node = wanted.node.iter().map(Change::Node);
        let networks = wanted.networks.values().map(Change::Network);
        let endpoints = wanted.endpoints.values().map(Change::Endpoint);
        let all: Vec<Change<'_>> = node.chain(networks).chain(endpoints).collect();
        Self::at(new)?.commit(&all)?;
        // At every moment there is one of them.
        let mut kept = None;
        if path.exists() {
            let old = path.with_extension("redb.old");
            remove_file(&old)?;
            std::fs::hard_link(path, &old).map_err(failed)?;
            kept = Some(old);
        }
        std::fs::rename(new, path).map_err(failed)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        std::fs::File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed)?;
        Ok(kept)
    }

    /// All of `changes` or, where an error is returned, none.
    pub fn commit(&mut self, changes: &[Change<'_>]) -> Result<(), StoreError> {
        let mut before = Vec::with_capacity(changes.len());
        let committed = self.try_commit(changes, &mut before);
        if let Err(StoreError::Access { source, .. }) = &committed
            && matches!(**source, redb::Error::Io(_) | redb::Error::PreviousIo)
        {
            tracing::warn!(error = %source, "the store could not be written: nothing is changed until it can be");
            self.database = None;
            self.doubtful = before;
        }
        committed
    }

    fn try_commit(
        &mut self,
        changes: &[Change<'_>],
        before: &mut Vec<Before>,
    ) -> Result<(), StoreError> {
        let transaction = self.begin_write()?;
        for change in changes {
            before.push(match change {
                Change::Node(node) => self.put(&transaction, META, "node", node)?,
                Change::Network(n) => self.put(&transaction, NETWORKS, &n.name, n)?,
                Change::NoNetwork(name) => self.delete(&transaction, NETWORKS, name)?,
                Change::Endpoint(e) => self.put(&transaction, ENDPOINTS, &e.name, e)?,
                Change::NoEndpoint(name) => self.delete(&transaction, ENDPOINTS, name)?,
            });
        }
        transaction.commit().map_err(|e| self.access(e))
    }

    fn put(
        &self,
        transaction: &WriteTransaction,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        key: &str,
        record: &impl Serialize,
    ) -> Result<Before, StoreError> {
        let bytes = serde_json::to_vec(record).map_err(|source| StoreError::Record {
            path: self.path.clone(),
            key: key.to_owned(),
            source,
        })?;
        let mut open = transaction.open_table(table).map_err(|e| self.access(e))?;
        let old = open.insert(key, bytes.as_slice());
        let old = old.map_err(|e| self.access(e))?;
        Ok((table, key.to_owned(), old.map(|old| old.value().to_vec())))
    }

    fn delete(
        &self,
        transaction: &WriteTransaction,
        table: TableDefinition<'static, &'static str, &'static [u8]>,
        key: &str,
    ) -> Result<Before, StoreError> {
        let mut open = transaction.open_table(table).map_err(|e| self.access(e))?;
        let old = open.remove(key).map_err(|e| self.access(e))?;
        Ok((table, key.to_owned(), old.map(|old| old.value().to_vec())))
    }
}

/// Puts values back, the last change first.
fn take_back(database: &Database, before: &[Before]) -> Result<(), redb::Error> {
    if before.is_empty() {
        return Ok(());
    }
    let transaction = database.begin_write()?;
    for (table, key, value) in before.iter().rev() {
        let mut table = transaction.open_table(*table)?;
        match value {
            Some(value) => table.insert(key.as_str(), value.as_slice())?,
            None => table.remove(key.as_str())?,
        };
    }
    Ok(transaction.commit()?)
}

#[cfg(test)]
pub mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{
        agent::{
            ipam::Pool,
            record::{Attachment, Mode, Published, Target},
        },
        publish::PortRange,
        rules::Rules,
    };

    pub fn network() -> Network {
        Network {
            name: "bridge".parse().unwrap(),
            number: 1,
            bridge: "netfw0".into(),
            mac: "02:6e:ac:12:00:01".parse().unwrap(),
            v4: Some(Pool::new("172.18.0.0/16".parse().unwrap(), None).unwrap()),
            v6: Some(Pool::new("fd00:1:2::/64".parse().unwrap(), None).unwrap()),
            mtu: None,
            rules: Rules::default(),
            labels: Default::default(),
            unsettled: false,
        }
    }

    pub fn endpoint(name: &str) -> Endpoint {
        let spec: crate::publish::Spec = "8080-8090:80-90/udp".parse().unwrap();
        Endpoint {
            name: name.parse().unwrap(),
            mode: Mode::Networks,
            namespace: Target {
                path: "/run/netns/x".into(),
                made: true,
                id: Some((4, 4026531840)),
            },
            attachments: vec![Attachment {
                network: "bridge".parse().unwrap(),
                ip4: Some("172.18.0.2".parse().unwrap()),
                ip6: Some("fd00:1:2::2".parse().unwrap()),
                mac: "02:6e:ac:12:00:02".parse().unwrap(),
                host_interface: "nf1".into(),
                interface: "eth0".into(),
                aliases: Vec::new(),
                owner: None,
                removing: false,
            }],
            counter: 1,
            publishes: vec![Published {
                publish: spec.resolve(Ipv4Addr::UNSPECIFIED.into(), spec.container_ports),
                counter: 2,
                allow_from: vec!["10.0.0.0/8".parse().unwrap()].into(),
            }],
            allow_from: vec!["fd00::1".parse().unwrap()].into(),
            exposed: Vec::new(),
            links: Vec::new(),
            removing: false,
            predecessor: None,
        }
    }

    #[test]
    fn what_is_committed_is_there_after_opening_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state.redb");
        let node = Node {
            netns: Some("/run/netns/n".into()),
            id: (4, 5),
            boot: "b".into(),
            prefix6: Some("fd00:1:2::/48".parse().unwrap()),
        };
        {
            let mut store = Store::open(&path).unwrap();
            assert_eq!(store.load().unwrap(), Wanted::default());
            store
                .commit(&[
                    Change::Node(&node),
                    Change::Network(&network()),
                    Change::Endpoint(&endpoint("a")),
                    Change::Endpoint(&endpoint("b")),
                ])
                .unwrap();
            store
                .commit(&[Change::NoEndpoint(&"a".parse().unwrap())])
                .unwrap();
        }
        let wanted = Store::open(&path).unwrap().load().unwrap();
        assert_eq!(wanted.node, Some(node));
        assert_eq!(wanted.networks.values().collect::<Vec<_>>(), [&network()]);
        assert_eq!(
            wanted.endpoints.values().collect::<Vec<_>>(),
            [&endpoint("b")]
        );
        assert_eq!(wanted.counters().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_store_of_an_older_version_becomes_one_of_this() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let version = |store: &mut Store| {
            let transaction = store.database().unwrap().begin_read().unwrap();
            let table = transaction.open_table(META).unwrap();
            let value = table.get("version").unwrap().unwrap();
            String::from_utf8(value.value().to_vec()).unwrap()
        };
        {
            let mut store = Store::open(&path).unwrap();
            let transaction = store.begin_write().unwrap();
            transaction
                .open_table(META)
                .unwrap()
                .insert("version", b"1".as_slice())
                .unwrap();
            transaction.commit().unwrap();
            assert_eq!(version(&mut store), "1");
        }
        assert_eq!(
            version(&mut Store::open(&path).unwrap()),
            VERSION.to_string()
        );
    }

    /// Word for word what netfw 0.1.0 wrote before it knew IPv6.
    #[test]
    fn a_store_without_ipv6_is_read() {
        let network: Network = serde_json::from_str(
            r#"{"name":"bridge","number":1,"bridge":"netfw0","mac":"02:6e:ac:12:00:01",
                "subnet":"172.18.0.0/16","gateway":"172.18.0.1","last":"172.18.0.1"}"#,
        )
        .unwrap();
        let want = Network {
            v6: None,
            ..self::network()
        };
        assert_eq!(network, want);
        let endpoint: Endpoint = serde_json::from_str(
            r#"{"name":"a","network":"bridge",
                "namespace":{"path":"/run/netns/x","made":true,"id":[4,4026531840]},
                "ip4":"172.18.0.2","mac":"02:6e:ac:12:00:02","host_interface":"nf1",
                "interface":"eth0","counter":1,"removing":false,"publishes":[{"publish":
                {"protocol":"udp","host_ip":"0.0.0.0","host_ports":{"first":8080,"last":8090},
                "container_ports":{"first":80,"last":90}},"counter":2}]}"#,
        )
        .unwrap();
        let mut want = self::endpoint("a");
        want.attachments[0].ip6 = None;
        // Nor did it know who may use a publish.
        want.allow_from = Default::default();
        want.publishes[0].allow_from = Default::default();
        want.publishes[0].publish.host_ports = PortRange {
            first: 8080,
            last: 8090,
        };
        assert_eq!(endpoint, want);
        let node: Node = serde_json::from_str(r#"{"netns":null,"id":[4,5],"boot":"b"}"#).unwrap();
        assert_eq!(node.prefix6, None);
    }

    #[test]
    fn an_endpoint_comes_back_with_all_its_attachments() {
        let mut endpoint = endpoint("a");
        let mut second = endpoint.attachments[0].clone();
        second.network = "app".parse().unwrap();
        second.removing = true;
        second.aliases = vec!["www".parse().unwrap()];
        endpoint.attachments.push(second);
        endpoint.removing = true;
        endpoint.links = vec!["db:database".parse().unwrap()];
        endpoint.exposed = vec!["53/udp".parse().unwrap()];
        let mut sharing = endpoint.clone();
        sharing.mode = Mode::Container("web".parse().unwrap());
        sharing.attachments.clear();
        for endpoint in [endpoint, sharing] {
            let text = serde_json::to_string(&endpoint).unwrap();
            let read: Endpoint = serde_json::from_str(&text).unwrap();
            assert_eq!(read, endpoint, "{text}");
        }
    }

    #[test]
    fn a_network_of_one_family_stays_one() {
        for (v4, v6) in [(true, false), (false, true)] {
            let mut network = network();
            network.v4 = network.v4.filter(|_| v4);
            network.v6 = network.v6.filter(|_| v6);
            let text = serde_json::to_string(&network).unwrap();
            assert_eq!(
                serde_json::from_str::<Network>(&text).unwrap(),
                network,
                "{text}"
            );
        }
    }

    #[test]
    fn a_newer_store_and_a_broken_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let mut store = Store::open(&path).unwrap();
            let transaction = store.begin_write().unwrap();
            transaction
                .open_table(META)
                .unwrap()
                .insert("version", (VERSION + 1).to_string().as_bytes())
                .unwrap();
            transaction.commit().unwrap();
        }
        assert!(matches!(
            Store::open(&path),
            Err(StoreError::Version { found, .. }) if found == VERSION + 1
        ));
        std::fs::write(&path, b"not a store").unwrap();
        assert!(matches!(Store::open(&path), Err(StoreError::Open { .. })));
    }

    /// As where only the flush of a commit failed.
    #[test]
    fn what_was_refused_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut store = Store::open(&path).unwrap();
        let (a, b) = (endpoint("a"), endpoint("b"));
        let leaving = Endpoint {
            removing: true,
            ..a.clone()
        };
        store.commit(&[Change::Endpoint(&a)]).unwrap();
        let wanted = store.load().unwrap();
        let mut before = Vec::new();
        let changes = [Change::Endpoint(&leaving), Change::Endpoint(&b)];
        store.try_commit(&changes, &mut before).unwrap();
        assert_ne!(store.load().unwrap(), wanted);
        (store.database, store.doubtful) = (None, before);
        assert_eq!(store.load().unwrap(), wanted);
        // And no empty one takes the place of one that is gone.
        store.database = None;
        std::fs::remove_file(&path).unwrap();
        let refused = store.commit(&[Change::Endpoint(&b)]);
        assert!(matches!(refused, Err(StoreError::Closed { .. })));
        assert!(!path.exists());
    }

    #[test]
    fn what_can_be_read_is_saved_and_nothing_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        {
            let mut store = Store::open(&path).unwrap();
            let (network, a, b) = (network(), endpoint("a"), endpoint("b"));
            let all = [
                Change::Network(&network),
                Change::Endpoint(&a),
                Change::Endpoint(&b),
            ];
            store.commit(&all).unwrap();
            let transaction = store.begin_write().unwrap();
            transaction
                .open_table(ENDPOINTS)
                .unwrap()
                .insert("b", b"{".as_slice())
                .unwrap();
            transaction.commit().unwrap();
        }
        assert!(Store::open(&path).unwrap().load().is_err());
        let bytes = std::fs::read(&path).unwrap();
        let (wanted, broken) = Store::examine(&path).unwrap();
        let names: Vec<&str> = wanted.endpoints.keys().map(Name::as_str).collect();
        assert_eq!((wanted.networks.len(), names), (1, vec!["a"]));
        assert!(
            matches!(&broken[..], [StoreError::Record { key, .. }] if key == "b"),
            "{broken:?}"
        );
        assert!(std::fs::read(&path).unwrap() == bytes);

        // And put in its place.
        let old = Store::replace(&path, &wanted).unwrap().unwrap();
        assert!(std::fs::read(&old).unwrap() == bytes);
        assert_eq!(Store::open(&path).unwrap().load().unwrap(), wanted);
        Store::replace(&path, &Wanted::default()).unwrap();
        assert_eq!(
            Store::open(&path).unwrap().load().unwrap(),
            Wanted::default()
        );
        let other = dir.path().join("other.redb");
        assert_eq!(Store::replace(&other, &wanted).unwrap(), None);
    }
}
