//! The store: the wanted state on disk, in one redb file.
//!
//! One table a kind of record, keys are names, values JSON. Every [`Store::commit`] is one
//! transaction and is on disk when it returns: a change is here before it is in the kernel, so
//! whatever instant the agent dies at, the next start finds the state before or after it. The file as a whole is
//! `file`'s.

mod file;

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

impl Store {
    /// Opens the store, or makes one, which is there at once or not at all: a file that redb has only begun
    /// is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            Self::replace(path, &Wanted::default())?;
        }
        Self::at(path)
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
pub mod tests;
