//! The store's file as a whole: is it there, what is in one that is damaged, and another in its place.

use std::{
    io,
    path::{Path, PathBuf},
};

use redb::Database;

use super::{Change, Store, StoreError};
use crate::agent::record::Wanted;

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
}
