// SPDX-License-Identifier: MIT OR Apache-2.0
//! The Rust mirror and the C header are the same ABI.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use asyncfork_uapi::*;

/// A struct as this crate declares it.
struct Mirror {
    c_name: &'static str,
    size: usize,
    fields: &'static [Field],
}

fn mirror<T: AbiStruct>() -> Mirror {
    Mirror {
        c_name: T::C_NAME,
        size: size_of::<T>(),
        fields: T::FIELDS,
    }
}

fn structs() -> Vec<Mirror> {
    vec![
        mirror::<Chunks>(),
        mirror::<Histogram>(),
        mirror::<Version>(),
        mirror::<Arm>(),
        mirror::<Report>(),
        mirror::<Stats>(),
        mirror::<Recent>(),
        mirror::<Enroll>(),
        mirror::<Unenroll>(),
        mirror::<Entry>(),
        mirror::<Enrolled>(),
    ]
}

fn enums() -> Vec<(&'static str, &'static [(&'static str, u32)])> {
    vec![
        ("asyncfork_outcome", Outcome::VALUES),
        ("asyncfork_reason", Reason::VALUES),
        ("asyncfork_state", State::VALUES),
        ("asyncfork_hook", Hook::VALUES),
        ("asyncfork_by", By::VALUES),
    ]
}

/// Enums that end with an array bound.
const BOUNDS: [(&str, &str); 3] = [
    ("asyncfork_reason", "ASYNCFORK_REASON_MAX"),
    ("asyncfork_hook", "ASYNCFORK_HOOK_MAX"),
    ("asyncfork_by", "ASYNCFORK_BY_MAX"),
];

fn header_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../kmod/uapi/asyncfork.h")
}

/// What the header declares, read without a compiler.
#[derive(Debug, Default)]
struct Header {
    /// Name -> (base type, field) in order.
    structs: BTreeMap<String, Vec<(String, String)>>,
    /// Name -> value names in order.
    enums: BTreeMap<String, Vec<String>>,
    defines: Vec<String>,
}

impl Header {
    fn read() -> Self {
        Self::parse(&std::fs::read_to_string(header_path()).expect("read the header"))
    }

    fn parse(text: &str) -> Self {
        let mut code = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("/*") {
            code.push_str(before);
            code.push(' ');
            rest = after.split_once("*/").expect("a closed comment").1;
        }
        code.push_str(rest);

        let mut header = Self::default();
        let mut declarations = String::new();
        for line in code.lines() {
            match line.trim_start().strip_prefix("#define") {
                Some(define) => {
                    let name = define.split_whitespace().next().expect("a name");
                    if name.starts_with("ASYNCFORK_") {
                        header.defines.push(name.to_owned());
                    }
                }
                None if line.trim_start().starts_with('#') => {}
                None => writeln!(declarations, "{line}").unwrap(),
            }
        }

        let mut rest = declarations.as_str();
        while let Some((head, tail)) = rest.split_once('{') {
            let (body, after) = tail.split_once("};").expect("a closed block");
            let head: Vec<&str> = head.split_whitespace().collect();
            match head[..] {
                ["struct", name] => {
                    header.structs.insert(name.to_owned(), fields(body));
                }
                ["enum", name] => {
                    let values = body.split(',').map(|v| v.split('=').next().unwrap().trim());
                    let values = values
                        .filter(|v| !v.is_empty())
                        .map(str::to_owned)
                        .collect();
                    header.enums.insert(name.to_owned(), values);
                }
                _ => panic!("cannot read this declaration: {head:?}"),
            }
            rest = after;
        }
        assert!(
            rest.trim().is_empty(),
            "cannot read the end of the header: {rest}"
        );
        header
    }
}

fn fields(body: &str) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    for field in body.split(';').map(str::trim).filter(|f| !f.is_empty()) {
        let declarator = field.split('[').next().unwrap();
        assert!(
            !declarator.contains(','),
            "one field a declaration, please: {field}"
        );
        let (ty, name) = declarator
            .rsplit_once(char::is_whitespace)
            .expect("type and name");
        fields.push((ty.trim().to_owned(), name.to_owned()));
    }
    fields
}

/// The C type that belongs to a Rust field type, without array bounds.
fn c_type(rust: &str) -> &'static str {
    match rust
        .trim_start_matches('[')
        .split(';')
        .next()
        .unwrap()
        .trim()
    {
        "u8" => "char",
        "u32" => "__u32",
        "i32" => "__s32",
        "u64" => "__u64",
        "Chunks" => "struct asyncfork_chunks",
        "Histogram" => "struct asyncfork_histogram",
        other => panic!("no C type known for {other}"),
    }
}

fn c_field(field: &Field) -> &'static str {
    field.name.trim_start_matches("r#")
}

#[test]
fn every_struct_and_field_is_mirrored() {
    let header = Header::read();
    let ours: BTreeMap<String, Vec<(String, String)>> = structs()
        .iter()
        .map(|s| {
            let fields = s
                .fields
                .iter()
                .map(|f| (c_type(f.ty).to_owned(), c_field(f).to_owned()));
            (s.c_name.to_owned(), fields.collect())
        })
        .collect();
    assert_eq!(header.structs, ours);
}

#[test]
fn every_enum_value_is_mirrored() {
    let header = Header::read();
    let mut theirs = header.enums;
    // Array bounds: of CONSTANTS.
    for (name, bound) in BOUNDS {
        let values = theirs.get_mut(name).expect(name);
        assert_eq!(values.pop().as_deref(), Some(bound));
    }
    let ours: BTreeMap<String, Vec<String>> = enums()
        .into_iter()
        .map(|(name, values)| {
            (
                name.to_owned(),
                values.iter().map(|v| v.0.to_owned()).collect(),
            )
        })
        .collect();
    assert_eq!(theirs, ours);
}

#[test]
fn every_define_is_mirrored() {
    let mut theirs = Header::read().defines;
    theirs.extend(BOUNDS.map(|(_, bound)| bound.to_owned()));
    let mut ours: Vec<String> = CONSTANTS.iter().map(|c| c.0.to_owned()).collect();
    ours.extend(["ASYNCFORK_DEVICE", "ASYNCFORK_MARK"].map(str::to_owned));
    theirs.sort();
    ours.sort();
    assert_eq!(theirs, ours);
}

/// What the C compiler says about the header equals what rustc says here.
#[test]
fn sizes_offsets_and_numbers_agree_with_the_compiler() {
    let mut program = String::from(
        "#include <stddef.h>\n#include <stdio.h>\n#include \"asyncfork.h\"\n\
         #define SHOW(name, value) printf(\"%s %llu\\n\", name, (unsigned long long)(value))\n\
         int main(void)\n{\n\tprintf(\"device %s, mark %s\\n\", ASYNCFORK_DEVICE, ASYNCFORK_MARK);\n",
    );
    let mut expected = format!(
        "device {}, mark {}\n",
        DEVICE.to_str().unwrap(),
        MARK.to_str().unwrap()
    );
    let mut show = |name: &str, c_expression: &str, value: u64| {
        writeln!(program, "\tSHOW(\"{name}\", {c_expression});").unwrap();
        writeln!(expected, "{name} {value}").unwrap();
    };
    for Mirror {
        c_name,
        size,
        fields,
    } in structs()
    {
        show(c_name, &format!("sizeof(struct {c_name})"), size as u64);
        for field in fields {
            let name = c_field(field);
            let member = format!("((struct {c_name} *)0)->{name}");
            show(
                &format!("{c_name}.{name}.size"),
                &format!("sizeof({member})"),
                field.size as u64,
            );
            show(
                &format!("{c_name}.{name}.offset"),
                &format!("offsetof(struct {c_name}, {name})"),
                field.offset as u64,
            );
        }
    }
    for (name, value) in enums().into_iter().flat_map(|(_, values)| values) {
        show(name, name, u64::from(*value));
    }
    for (name, value) in CONSTANTS {
        show(name, name, *value);
    }
    program.push_str("\treturn 0;\n}\n");

    assert_eq!(run_c(&program), expected);
}

fn run_c(program: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("layout.c");
    let binary = dir.path().join("layout");
    std::fs::write(&source, program).unwrap();
    let cc = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-I"])
        .arg(header_path().parent().unwrap())
        .arg("-o")
        .args([&binary, &source])
        .output()
        .expect("run cc: install gcc");
    assert!(
        cc.status.success(),
        "cc failed:\n{}",
        String::from_utf8_lossy(&cc.stderr)
    );
    let run = Command::new(&binary).output().unwrap();
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout).unwrap()
}

/// The reader above must not overlook what it is there to find.
#[test]
fn the_header_reader_sees_additions() {
    let text = std::fs::read_to_string(header_path()).unwrap();
    let before = Header::parse(&text);
    let changed = text
        .replace("\t__u32 helpers;", "\t__u32 extra;\n\t__u32 helpers;")
        .replace(
            "\tASYNCFORK_STATE_DONE",
            "\tASYNCFORK_STATE_NEW = 9,\n\tASYNCFORK_STATE_DONE",
        )
        .replace(
            "#define ASYNCFORK_IOC_ARM",
            "#define ASYNCFORK_IOC_NEW 1\n#define ASYNCFORK_IOC_ARM",
        );
    let after = Header::parse(&changed);
    for name in ["asyncfork_arm", "asyncfork_report"] {
        assert_eq!(
            after.structs[name].len(),
            before.structs[name].len() + 1,
            "{name}"
        );
    }
    assert_eq!(
        after.enums["asyncfork_state"].len(),
        before.enums["asyncfork_state"].len() + 1
    );
    assert_eq!(after.defines.len(), before.defines.len() + 1);
}
