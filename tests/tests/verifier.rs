//! The verifier's work per program, held to the budget in verifier-budget.toml, or in that of the
//! running kernel, `verifier-budget-6.1.toml`, where there is one.
//!
//! The kernel gives up at a million instructions walked through, and takes seconds on the way
//! there; a program that grows by itself is noticed here, not on somebody's older kernel.

use std::{collections::BTreeMap, fmt::Write as _, fs, io::Write as _, path::PathBuf};

use aya::{
    Btf, EbpfLoader,
    programs::{Program, ProgramError},
};

/// With this set, the counts seen become the budget, a tenth on top (`cargo xtask verify --update`).
const UPDATE: &str = "NETFW_UPDATE_BUDGET";

type Budget = BTreeMap<String, u32>;

#[test]
fn every_program_is_within_its_budget() {
    netfw_tests::require_root();
    let counts = verified();
    assert!(!counts.is_empty(), "the object holds no program");
    if std::env::var_os(UPDATE).is_some_and(|value| !value.is_empty()) {
        write(&counts);
    }
    let budget = read();

    // Not `println!`, which a passing test keeps to itself: the figures are wanted every time.
    let mut table = "verified instructions    budget    program\n".to_owned();
    for (name, count) in &counts {
        let limit = budget.get(name).map_or("none".to_owned(), u32::to_string);
        let _ = writeln!(table, "{count:>21} {limit:>9}    {name}");
    }
    let _ = std::io::stdout().lock().write_all(table.as_bytes());
    let mut wrong: Vec<String> = counts
        .iter()
        .filter_map(|(name, count)| match budget.get(name) {
            None => Some(format!("{name}: {count} instructions, and no budget")),
            Some(limit) if count > limit => {
                Some(format!("{name}: {count} instructions, budget {limit}"))
            }
            Some(_) => None,
        })
        .collect();
    wrong.extend(
        budget
            .keys()
            .filter(|name| !counts.contains_key(*name))
            .map(|name| format!("{name}: in the budget, but there is no such program")),
    );
    assert!(
        wrong.is_empty(),
        "{}\nIf the growth is worth it: `cargo xtask verify --update`, and commit {}",
        wrong.join("\n"),
        path().display()
    );
}

/// Loads every program of the object; instructions walked through, per program.
fn verified() -> Budget {
    let mut ebpf = EbpfLoader::new()
        // As the agent loads them by default: without this, what aya-log adds is counted too.
        .override_global("AYA_LOG_LEVEL", &0_u8, false)
        // And as it does where the kernel can do all of it: else this is not walked through.
        .override_global("SAYS_WHY", &1_u8, true)
        .override_global("V6ONLY_BIT", &157_u32, true)
        .btf(Btf::from_sys_fs().ok().as_ref())
        .load(netfw::bpf::PROGRAMS_OBJECT)
        .expect("the object that netfw carries can be loaded");
    ebpf.programs_mut()
        .map(|(name, program)| {
            load(program).unwrap_or_else(|error| panic!("the kernel refuses {name}: {error:#}"));
            let count = program
                .info()
                .unwrap_or_else(|error| panic!("{name} has no info: {error}"))
                .verified_instruction_count()
                .unwrap_or_else(|| panic!("the kernel does not count {name} (it can since 5.16)"));
            (name.to_owned(), count)
        })
        .collect()
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        other => panic!(
            "a program of type {:?}: say here how to load it",
            other.prog_type()
        ),
    }
}

/// Old kernels walk through more than new ones, and must not set what is allowed for those.
fn path() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let of_kernel = tests.join(format!("verifier-budget-{}.toml", kernel()));
    if of_kernel.exists() {
        of_kernel
    } else {
        tests.join("verifier-budget.toml")
    }
}

/// The running kernel's major and minor number, `6.1` of `6.1.0-56-cloud-amd64`.
fn kernel() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("/proc is mounted");
    let numbers: Vec<&str> = release.trim().split(['.', '-']).take(2).collect();
    numbers.join(".")
}

fn read() -> Budget {
    let text = fs::read_to_string(path())
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path().display()));
    toml::from_str(&text)
        .unwrap_or_else(|error| panic!("{} is no budget: {error}", path().display()))
}

fn write(counts: &Budget) {
    let mut text = fs::read_to_string(path()).unwrap_or_default();
    let head: String = text
        .lines()
        .take_while(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    text = head;
    text.push('\n');
    for (name, count) in counts {
        let _ = writeln!(text, "{name} = {}", count + count / 10);
    }
    fs::write(path(), text)
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path().display()));
}
