// SPDX-License-Identifier: MIT OR Apache-2.0
//! `enroll`, `unenroll`, `enrolled`: opt-in by cgroup, without the library.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;

use crate::cgroup;
use crate::cli::{EnrollArgs, UnenrollArgs, Which};
use crate::ctx::Ctx;
use crate::exit::{self, Exit};
use crate::host::Host;
use crate::module::{self, Cgroup, Module, Policy, Terms};
use crate::out::{self, bytes};
use crate::process::Process;
use crate::systemd::{self, Unit};

/// What to say if the policy is `armed`.
const WITHOUT_EFFECT: &str = "note: without effect, as the module's policy is armed: \
                              echo enrolled > /sys/module/asyncfork/parameters/policy";

/// Enrols a cgroup.
///
/// # Errors
/// There is none, or the module refuses.
pub fn enroll(ctx: &mut Ctx<'_>, args: &EnrollArgs) -> Result<Exit> {
    let directory = directory(&ctx.host, &args.which)?;
    let module = ctx.module()?;
    let most = module.version()?.max_helpers;
    if args.helpers > most {
        return Err(exit::input(format!(
            "--helpers {}: the module allows {most}",
            args.helpers
        )));
    }
    let terms = Terms {
        min_rss: args.min_rss,
        helpers: args.helpers,
    };
    let changed = enroll_directory(&ctx.host, module.as_ref(), &directory, terms)?;
    if ctx.out.is_json() {
        ctx.out
            .object(&json!({"changed": changed, "cgroup": directory, "terms": terms}))?;
    } else {
        ctx.out.line(format!("changed: {changed}"))?;
        ctx.out.line(format!(
            "enrolled: {} (processes from {}, {} helper threads), from the next fork on",
            directory.display(),
            bytes(terms.min_rss),
            terms.helpers
        ))?;
        if module::policy(&ctx.host) == Some(Policy::Armed) {
            ctx.out.line(WITHOUT_EFFECT)?;
        }
    }
    Ok(Exit::Done)
}

/// Enrols a directory; false: it was, on these terms.
///
/// # Errors
/// The module refuses.
pub fn enroll_directory(
    host: &Host,
    module: &dyn Module,
    directory: &Path,
    terms: Terms,
) -> Result<bool> {
    let file = cgroup::open(host, directory)?;
    let id = cgroup::id(host, directory);
    let before = module.enrolled()?;
    if before.iter().any(|e| Some(e.id) == id && e.terms == terms) {
        return Ok(false);
    }
    module.enroll(&file, terms)?;
    Ok(true)
}

/// Takes a cgroup out.
///
/// # Errors
/// There is none, or the module refuses.
pub fn unenroll(ctx: &mut Ctx<'_>, args: &UnenrollArgs) -> Result<Exit> {
    let (changed, name) = if let Some(id) = args.id {
        (
            ctx.module()?.unenroll(&Cgroup::Id(id))?,
            format!("number {id}"),
        )
    } else {
        let directory = directory(&ctx.host, &args.which)?;
        let file = cgroup::open(&ctx.host, &directory)?;
        (
            ctx.module()?.unenroll(&Cgroup::Open(&file))?,
            directory.display().to_string(),
        )
    };
    if ctx.out.is_json() {
        ctx.out
            .object(&json!({"changed": changed, "cgroup": name}))?;
    } else {
        ctx.out.line(format!("changed: {changed}"))?;
        ctx.out.line(format!("not enrolled: {name}"))?;
    }
    Ok(Exit::Done)
}

/// Lists the enrolled cgroups.
///
/// # Errors
/// No module, or one without enrolment.
pub fn enrolled(ctx: &mut Ctx<'_>) -> Result<Exit> {
    let enrolled = ctx.module()?.enrolled()?;
    let ids: Vec<_> = enrolled.iter().map(|e| e.id).collect();
    let paths = cgroup::find(&ctx.host, &ids);
    if ctx.out.is_json() {
        let list: Vec<_> = enrolled
            .iter()
            .zip(&paths)
            .map(|(e, path)| {
                json!({
                    "id": e.id, "cgroup": path, "terms": e.terms,
                    "async_forks": e.async_forks, "stock_forks": e.stock_forks,
                })
            })
            .collect();
        ctx.out
            .object(&json!({"enrolled": list, "policy": module::parameter(&ctx.host, "policy")}))?;
        return Ok(Exit::Done);
    }
    let mut table = out::table(&["number", "from", "helpers", "async", "stock", "cgroup"]);
    for (e, path) in enrolled.iter().zip(&paths) {
        table.add_row([
            e.id.to_string(),
            bytes(e.terms.min_rss),
            e.terms.helpers.to_string(),
            e.async_forks.to_string(),
            e.stock_forks.to_string(),
            path.as_ref()
                .map_or("(gone)".into(), |p| p.display().to_string()),
        ]);
    }
    if enrolled.is_empty() {
        ctx.out.line("no cgroup is enrolled")?;
    } else {
        ctx.out.line(table.trim_fmt())?;
    }
    match module::policy(&ctx.host) {
        Some(Policy::Armed) => ctx.out.line(WITHOUT_EFFECT)?,
        Some(Policy::All { min_rss }) => {
            ctx.out.line(format!(
                "and by policy: all processes with {} or more",
                bytes(min_rss)
            ))?;
        }
        Some(Policy::Enrolled) | None => {}
    }
    Ok(Exit::Done)
}

fn directory(host: &Host, which: &Which) -> Result<PathBuf> {
    if let Some(name) = &which.unit {
        let (unit, shown) = systemd::find(host, &Unit::parse(name)?)?;
        let path = shown.cgroup().ok_or_else(|| {
            exit::input(format!(
                "{unit} does not run, and so has no cgroup: asyncfork enable {unit} enrols it at each start"
            ))
        })?;
        return cgroup::directory(host, path);
    }
    if let Some(pid) = which.pid {
        let process = Process::read(host, pid)?;
        let path = process.cgroup.ok_or_else(|| {
            exit::cannot_tell(format!(
                "process {pid} is in no cgroup v2; use the library (asyncfork run)"
            ))
        })?;
        return cgroup::directory(host, &path);
    }
    match &which.cgroup {
        Some(path) => cgroup::given(host, path),
        None => cgroup::own(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::Enrolment;
    use crate::testing::Fake;

    const REDIS: &str = "system.slice/redis-server.service";

    fn by(which: Which) -> EnrollArgs {
        EnrollArgs {
            which,
            min_rss: 64 << 20,
            helpers: 1,
        }
    }

    #[test]
    fn a_unit_a_process_a_path_and_oneself_name_the_same_cgroup() {
        for args in [
            by(Which {
                unit: Some("redis-server".into()),
                ..Which::default()
            }),
            by(Which {
                pid: Some(42),
                ..Which::default()
            }),
            by(Which {
                cgroup: Some(REDIS.into()),
                ..Which::default()
            }),
            by(Which {
                own: true,
                ..Which::default()
            }),
        ] {
            let fake = Fake::new();
            fake.loaded().cgroup(REDIS).server(42).module(|m| m.abi = 3);
            fake.unit(
                "redis-server.service",
                "Id=redis-server.service\nLoadState=loaded\nControlGroup=/system.slice/redis-server.service\n",
            );
            fake.write(
                "/proc/self/cgroup",
                "0::/system.slice/redis-server.service\n",
            );
            let (result, text) = fake.command("enroll", |ctx| enroll(ctx, &args));
            assert_eq!(result.unwrap(), Exit::Done);
            assert!(text.starts_with("changed: true"), "{text}");
            let id = cgroup::id(&fake.host, &Path::new("/sys/fs/cgroup").join(REDIS)).unwrap();
            let wanted = Enrolment {
                id,
                terms: Terms {
                    min_rss: 64 << 20,
                    helpers: 1,
                },
                async_forks: 0,
                stock_forks: 0,
            };
            fake.module(|m| assert_eq!(m.enrolled, [wanted]));
            let (_, text) = fake.command("enroll", |ctx| enroll(ctx, &args));
            assert!(text.starts_with("changed: false"), "{text}");
        }
    }

    #[test]
    fn a_cgroup_is_taken_out_by_path_or_number() {
        let fake = Fake::new();
        fake.loaded().cgroup(REDIS).module(|m| m.abi = 3);
        let args = by(Which {
            cgroup: Some(REDIS.into()),
            ..Which::default()
        });
        let id = cgroup::id(&fake.host, &Path::new("/sys/fs/cgroup").join(REDIS));
        for by_number in [false, true] {
            fake.command("enroll", |ctx| enroll(ctx, &args)).0.unwrap();
            let out = UnenrollArgs {
                which: Which {
                    cgroup: (!by_number).then(|| REDIS.into()),
                    ..Which::default()
                },
                id: id.filter(|_| by_number),
            };
            assert!(fake
                .command("unenroll", |ctx| unenroll(ctx, &out))
                .1
                .starts_with("changed: true"));
            assert!(fake
                .command("unenroll", |ctx| unenroll(ctx, &out))
                .1
                .starts_with("changed: false"));
        }
    }

    #[test]
    fn an_older_module_says_what_to_do() {
        let fake = Fake::new();
        fake.loaded().cgroup(REDIS);
        let args = by(Which {
            cgroup: Some(REDIS.into()),
            ..Which::default()
        });
        let error = fake
            .command("enroll", |ctx| enroll(ctx, &args))
            .0
            .unwrap_err();
        assert_eq!(exit::of(&error), Exit::Failed);
        assert!(error.to_string().contains("ABI 3"), "{error}");
        assert!(fake.command("enrolled", enrolled).0.is_err());
    }

    #[test]
    fn wrong_targets_change_nothing() {
        let fake = Fake::new();
        fake.loaded().cgroup(REDIS).module(|m| m.abi = 3);
        fake.unit(
            "off.service",
            "Id=off.service\nLoadState=loaded\nControlGroup=\n",
        );
        for args in [
            by(Which {
                unit: Some("off".into()),
                ..Which::default()
            }),
            by(Which {
                unit: Some("none".into()),
                ..Which::default()
            }),
            by(Which {
                unit: Some("a/b".into()),
                ..Which::default()
            }),
            by(Which {
                pid: Some(4711),
                ..Which::default()
            }),
            by(Which {
                cgroup: Some("/".into()),
                ..Which::default()
            }),
            EnrollArgs {
                helpers: 99,
                ..by(Which {
                    cgroup: Some(REDIS.into()),
                    ..Which::default()
                })
            },
        ] {
            let error = fake
                .command("enroll", |ctx| enroll(ctx, &args))
                .0
                .unwrap_err();
            assert_eq!(exit::of(&error), Exit::Input, "{args:?}");
        }
        fake.module(|m| assert!(m.enrolled.is_empty()));
    }

    #[test]
    fn json_is_as_documented() {
        let fake = Fake::new();
        fake.loaded().module(|m| {
            m.abi = 3;
            m.enrolled = vec![Enrolment {
                id: 1,
                terms: Terms {
                    min_rss: 64 << 20,
                    helpers: 2,
                },
                async_forks: 3,
                stock_forks: 4,
            }];
        });
        fake.golden("enrolled", "enrolled", enrolled);
        fake.cgroup(REDIS);
        let args = by(Which {
            cgroup: Some(REDIS.into()),
            ..Which::default()
        });
        fake.golden("enroll", "enroll", |ctx| enroll(ctx, &args));
        let out = UnenrollArgs {
            which: Which {
                cgroup: Some(REDIS.into()),
                ..Which::default()
            },
            id: None,
        };
        fake.golden("unenroll", "unenroll", |ctx| unenroll(ctx, &out));
    }
}
