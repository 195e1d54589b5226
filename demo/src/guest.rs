// SPDX-License-Identifier: MIT OR Apache-2.0
//! The demo from beginning to end.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use asyncfork_host::procfs::{kib_line, meminfo, read};
use asyncfork_host::size::parse_size;

use crate::load::{Dataset, Load};
use crate::machine::MeasuredOn;
use crate::module::Module;
use crate::progress::{say, Pace};
use crate::report::{human, Column, Results, Setup};
use crate::resp::Reply;
use crate::server::{Info, Server};
use crate::snapshots::Snapshots;

/// A tmpfs on every Linux: an RDB is written at the speed of memory.
const SHM: &str = "/dev/shm";

/// Command line of `guest`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Data in the server: bytes with suffix K, M or G
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = size)]
    size: u64,
    /// Measured snapshots of each kind, after one warm-up each
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=15))]
    rounds: u32,
    /// Requests per second, half SETs, half GETs
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..=1_000_000))]
    rate: u32,
    /// Connections that the requests take turns on
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=512))]
    clients: u32,
    /// Bytes per value
    #[arg(long, value_name = "BYTES", default_value_t = 12000, value_parser = clap::value_parser!(u32).range(500..=1_000_000))]
    value_size: u32,
    /// Also write the result there: all numbers if it ends in .json, otherwise the table
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Only stock forks, neither module nor library: a baseline that any machine can run
    #[arg(long)]
    stock_only: bool,
    /// Server to run
    #[arg(long, value_enum, default_value_t = Brand::Redis)]
    server: Brand,
    /// Another binary of it than /usr/bin/redis-server or /usr/bin/valkey-server
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// The module [default: target/kmod/RELEASE/asyncfork.ko of this kernel]
    #[arg(long, value_name = "FILE")]
    module: Option<PathBuf>,
    /// The library
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/release/libasyncfork.so"
    )]
    library: PathBuf,
    /// The machine that the VM runs on
    #[arg(long, value_name = "TEXT", hide = true)]
    host: Option<String>,
}

/// A server that forks to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Brand {
    Redis,
    Valkey,
}

impl Brand {
    /// Where Debian installs it.
    fn binary(self) -> &'static Path {
        Path::new(match self {
            Brand::Redis => "/usr/bin/redis-server",
            Brand::Valkey => "/usr/bin/valkey-server",
        })
    }
}

impl Options {
    /// The server's binary, in the guest.
    pub fn binary(&self) -> &Path {
        self.binary.as_deref().unwrap_or(self.server.binary())
    }

    /// Bytes of data in the server.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where the result is to be written.
    pub fn out(&self) -> Option<&Path> {
        self.out.as_deref()
    }
}

/// Parses a size such as `512M`.
fn size(text: &str) -> Result<u64, String> {
    const HINT: &str = "give a size from 64M up, such as 512M or 2G";
    parse_size(text)
        .ok()
        .filter(|bytes| (64 << 20..1 << 44).contains(bytes))
        .ok_or_else(|| HINT.to_owned())
}

/// Runs the demo and prints its table.
///
/// # Errors
/// [`crate::Claim`] if something did not hold, anything else if it could not
/// be tried.
pub fn run(options: &Options) -> Result<()> {
    let machine = MeasuredOn::this(options.host.clone())?;
    let memory = human(machine.memory_bytes);
    say(format!(
        "{}, {memory}, {}",
        machine.brief(),
        machine.execution
    ));
    check_room(options.size)?;

    // Declared in the order of need: an early return ends them in reverse.
    let dir = WorkDir::create()?;
    let module = match options.stock_only {
        true => None,
        false => Some(load_module(options, &machine.kernel)?),
    };
    let library = options.library.canonicalize();
    let library = match options.stock_only {
        true => None,
        false => Some(
            library
                .with_context(|| format!("{}: run scripts/library", options.library.display()))?,
        ),
    };
    let binary = options.binary();
    let server = Server::start(binary, &dir.0, "server", "dump.rdb", library.as_deref())?;
    if let Some(library) = &library {
        check_preloaded(&server, library)?;
    }

    let data = Dataset::new(options.size, options.value_size as usize);
    fill(&server, &data)?;
    let setup = Setup {
        keys: data.keys,
        value_size: data.value_size,
        data_bytes: data.bytes(),
        resident_bytes: resident_in_small_pages(&server)?,
        rate: options.rate,
        clients: options.clients as usize,
    };
    let name = Info::get(&mut server.client()?, "server")?.server()?;
    say(format!("{name}: {} resident", human(setup.resident_bytes)));

    let load = Load::start(server.socket(), &data, setup.rate, setup.clients)?;
    say(format!(
        "load: {} requests/s on {} connections",
        setup.rate, setup.clients
    ));
    let snapshots = Snapshots {
        binary,
        dir: &dir.0,
        module: module.as_ref(),
        server: &server,
        load: &load,
    };
    let results = (|| {
        let (stock, asynchronous) = snapshots.warm_up()?;
        let column = |verified| Column {
            verified,
            rounds: Vec::new(),
        };
        let mut results = Results {
            machine,
            server: name,
            setup,
            no_snapshot: Vec::new(),
            stock: column(stock),
            asynchronous: asynchronous.map(column),
        };
        snapshots.measure(options.rounds, &mut results)?;
        Ok(results)
    })();
    let results: Results = results.inspect_err(|_: &anyhow::Error| {
        eprintln!("the server's log ends with:\n{}", server.log_tail());
    })?;

    drop(load);
    server.stop()?;
    if let Some(module) = module {
        module.unload()?;
    }
    say(match options.stock_only {
        true => "server ended",
        false => "server ended, module unloaded",
    });

    let markdown = results.markdown();
    println!("\n{markdown}");
    if let Some(path) = &options.out {
        let json = path.extension().is_some_and(|e| e == "json");
        let text = if json { results.json()? } else { markdown };
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The server, its copy-on-write pages, an RDB, a second server with that RDB
/// and a second RDB: 4.5 times the data; both RDBs in shared memory.
fn check_room(size: u64) -> Result<()> {
    let available = meminfo("MemAvailable")?;
    let need = size * 9 / 2 + (256 << 20);
    ensure!(
        available >= need,
        "{} of memory available, {} needed: give the VM more (scripts/vm --memory) or use a \
         smaller --size",
        human(available),
        human(need)
    );
    let shm = rustix::fs::statvfs(SHM).with_context(|| format!("{SHM} is not there"))?;
    let (free, need) = (shm.f_bavail * shm.f_frsize, size * 11 / 5 + (64 << 20));
    ensure!(
        free >= need,
        "{} free in {SHM}, {} needed: remount it larger or use a smaller --size",
        human(free),
        human(need)
    );
    Ok(())
}

fn load_module(options: &Options, kernel: &str) -> Result<Module> {
    ensure!(
        read("/proc/cmdline")?.contains("virtme"),
        "this loads a kernel module, so it runs in the VM only: use scripts/demo"
    );
    // What Redis itself asks for at start.
    fs::write("/proc/sys/vm/overcommit_memory", "1").context("are you root?")?;
    let default = || format!("target/kmod/{kernel}/asyncfork.ko").into();
    let module = Module::load(&options.module.clone().unwrap_or_else(default))?;
    say("module loaded");
    Ok(module)
}

fn check_preloaded(server: &Server, library: &Path) -> Result<()> {
    let maps = read(&format!("/proc/{}/maps", server.pid()))?;
    ensure!(
        maps.contains(&*library.to_string_lossy()),
        "the server runs without {}:\n{}",
        library.display(),
        server.log_tail()
    );
    Ok(())
}

fn fill(server: &Server, data: &Dataset) -> Result<()> {
    say(format!(
        "filling: {} keys, {} of values",
        data.keys,
        human(data.bytes())
    ));
    let mut client = server.client()?;
    let mut pace = Pace::new();
    data.fill(&mut client, |keys| {
        pace.say(|| format!("filling: {} %", 100 * keys / data.keys))
    })?;
    let keys = client.run("DBSIZE")?;
    let want = Reply::Int(data.keys as i64);
    ensure!(keys == want, "the server has {keys:?} keys, not {want:?}");
    Ok(())
}

/// Bytes resident. Redis switches huge pages off for itself (disable-thp) once
/// it runs: small pages are the case that hurts, and the one to show.
fn resident_in_small_pages(server: &Server) -> Result<u64> {
    let smaps = read(&format!("/proc/{}/smaps_rollup", server.pid()))?;
    let (all, huge) = (kib_line(&smaps, "Rss")?, kib_line(&smaps, "AnonHugePages")?);
    ensure!(
        huge <= all / 8,
        "{} of the server's {} are in huge pages: is disable-thp off?",
        human(huge),
        human(all)
    );
    Ok(all)
}

/// A directory of our own in shared memory, removed on drop.
struct WorkDir(PathBuf);

impl WorkDir {
    fn create() -> Result<Self> {
        let path = Path::new(SHM).join(format!("asyncfork-demo.{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            eprintln!("asyncfork-demo: {} stays behind: {e}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_suffixes_and_bounds() {
        assert_eq!(size("1G"), Ok(1 << 30));
        assert_eq!(size("512m"), Ok(512 << 20));
        assert_eq!(size("67108864"), Ok(64 << 20));
        for bad in [
            "",
            "G",
            "63M",
            "1.5G",
            "1T",
            "-1G",
            "99999999999999999999",
            "17592186044416G",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
