// SPDX-License-Identifier: GPL-2.0-only
/*
 * Find unexported symbols, check what the module relies on
 *
 * Called once from module init. kallsyms_lookup_name() is found with a kprobe
 * that is registered and removed at once, everything else with it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/sizes.h>

#include "compat/compat.h"
#include "fault.h"
#include "symbols.h"

#define AF_CALL(stage, fn)	DEFINE_STATIC_CALL_NULL(af_call_##fn, fn);
#include "compat/call_list.h"
#undef AF_CALL

/* The kernel's list of mms with swap entries. */
spinlock_t *af_mmlist_lock;

/**
 * af_symbol - address of a kernel symbol
 * @name: its name
 *
 * Return: the address, 0 with a line in the log if there is none.
 */
unsigned long af_symbol(const char *name)
{
	unsigned long addr = af_call(kallsyms_lookup_name)(name);

	if (!addr)
		pr_err("kernel symbol %s not found\n", name);
	return addr;
}

static unsigned long kprobe_address(const char *name)
{
	struct kprobe kp = { .symbol_name = name };
	unsigned long addr;
	int ret;

	ret = register_kprobe(&kp);
	if (ret) {
		pr_err("kprobe on %s: error %d\n", name, ret);
		return 0;
	}
	addr = (unsigned long)kp.addr;
	unregister_kprobe(&kp);
	/* The probe may have been placed behind the ENDBR. */
	return ALIGN_DOWN(addr, 16);
}

/* The type's name as in proto_list.h; @buf may be too short for it. */
static int put_type(char *buf, size_t size, const struct btf *btf, u32 id)
{
	const struct btf_type *t = btf_type_by_id(btf, id);
	const char *name = "";
	char integer[12];
	int stars = 0;

	for (;; t = btf_type_by_id(btf, t->type)) {
		if (btf_kind(t) == BTF_KIND_PTR) {
			stars++;
			name = "";
		} else if (btf_kind(t) == BTF_KIND_TYPEDEF) {
			name = af_call(btf_name_by_offset)(btf, t->name_off);
		} else if (btf_kind(t) != BTF_KIND_CONST &&
			   btf_kind(t) != BTF_KIND_VOLATILE &&
			   btf_kind(t) != BTF_KIND_RESTRICT &&
			   btf_kind(t) != BTF_KIND_TYPE_TAG) {
			break;
		}
	}

	if (btf_kind(t) == BTF_KIND_UNKN) {
		name = "void";
	} else if (btf_kind(t) != BTF_KIND_INT) {
		/* No tag: that of the typedef, if any. */
		if (t->name_off)
			name = af_call(btf_name_by_offset)(btf, t->name_off);
	} else if (btf_int_encoding(t) & BTF_INT_BOOL) {
		name = "bool";
	} else if (t->size == 1) {
		/* Is a char signed? Compilers say so or not. */
		name = "char";
	} else {
		snprintf(integer, sizeof(integer), "%c%u",
			 btf_int_encoding(t) & BTF_INT_SIGNED ? 's' : 'u',
			 t->size * BITS_PER_BYTE);
		name = integer;
	}
	return scnprintf(buf, size, "%s%.*s", *name ? name : "?",
			 stars ? stars + 1 : 0, " ********");
}

/* A "-" in @want is any one type. */
static bool proto_fits(const char *want, const char *have)
{
	for (; *want; want++) {
		if (*want == '-' && *have != ')')
			have += strcspn(have, ",)");
		else if (*want != *have++)
			return false;
	}
	return !*have;
}

struct proto {
	const char *name, *text;
};

#define AF_PROTO(fn, text)	{ #fn, text },

static const struct proto protos[] = {
#include "compat/proto_list.h"
};

#undef AF_PROTO

/* AF_PROTO_name: a hook or a call without a row does not compile. */
#define AF_PROTO(fn, text)	AF_PROTO_##fn,

enum af_proto_row {
#include "compat/proto_list.h"
};

#undef AF_PROTO

#define AF_HOOK(kind, fn)	AF_PROTO_##fn,
#define AF_CALL(stage, fn)	AF_PROTO_##fn,

static const enum af_proto_row needed_rows[] __maybe_unused = {
#include "compat/hook_list.h"
#include "compat/call_list.h"
};

#undef AF_HOOK
#undef AF_CALL

enum stage { TYPES, CHECKED };

struct call {
	enum stage stage;
	const char *name;
	struct static_call_key *key;
	void *tramp;
};

#define AF_CALL(stage, fn)						\
	{ stage, #fn, &STATIC_CALL_KEY(af_call_##fn),			\
	  STATIC_CALL_TRAMP_ADDR(af_call_##fn) },

static const struct call call_list[] = {
#include "compat/call_list.h"
};

#undef AF_CALL

/* Point the static calls of a stage at the kernel's functions. */
static int resolve(enum stage stage)
{
	const struct call *c;
	unsigned long addr;

	for (c = call_list; c < call_list + ARRAY_SIZE(call_list); c++) {
		if (c->stage != stage)
			continue;
		addr = af_symbol(c->name);
		if (!addr)
			return -ENOENT;
		__static_call_update(c->key, c->tramp, (void *)addr);
	}
	return 0;
}

#define PROTO_MAX	128

#ifdef AF_FAULTS
static char *fault_proto;
module_param(fault_proto, charp, 0444);
MODULE_PARM_DESC(fault_proto, "function that is to have one parameter more");

#define AF_PROTO(fn, text)	#fn " "

static char *names =
#include "compat/proto_list.h"
	;
module_param_named(fault_protos, names, charp, 0444);
MODULE_PARM_DESC(fault_protos, "the functions whose prototypes are checked");

static const char *expected(const struct proto *p)
{
	static char text[PROTO_MAX];

	if (!fault_proto || strcmp(fault_proto, p->name))
		return p->text;
	snprintf(text, sizeof(text), "%.*s, -)", (int)strlen(p->text) - 1,
		 p->text);
	return text;
}
#else
static const char *expected(const struct proto *p)
{
	return p->text;
}
#endif

static int check_proto(const struct btf *btf, const struct proto *p)
{
	s32 id = af_call(btf_find_by_name_kind)(btf, p->name, BTF_KIND_FUNC);
	const struct btf_type *t;
	char have[PROTO_MAX];
	size_t n;
	u32 i;

	if (id < 0) {
		pr_err("this kernel's type information has no function %s\n",
		       p->name);
		return -ENOEXEC;
	}
	t = btf_type_by_id(btf, btf_type_by_id(btf, id)->type);
	n = put_type(have, sizeof(have), btf, t->type);
	n += scnprintf(have + n, sizeof(have) - n, "(");
	for (i = 0; i < btf_type_vlen(t); i++) {
		if (i)
			n += scnprintf(have + n, sizeof(have) - n, ", ");
		n += put_type(have + n, sizeof(have) - n, btf,
			      btf_params(t)[i].type);
	}
	scnprintf(have + n, sizeof(have) - n, ")");

	if (proto_fits(expected(p), have))
		return 0;
	pr_err("function %s is %s in this kernel, the module needs %s\n",
	       p->name, have, expected(p));
	return -ENOEXEC;
}

static bool member_fits(const struct btf *btf, const struct af_expected_member *m)
{
	s32 id = af_call(btf_find_by_name_kind)(btf, m->type, BTF_KIND_STRUCT);
	const struct btf_member *member;
	const struct btf_type *t;
	const char *name;
	u32 i;

	if (id < 0)
		return false;
	t = btf_type_by_id(btf, id);
	for_each_member(i, t, member) {
		name = af_call(btf_name_by_offset)(btf, member->name_off);
		if (!strcmp(name, m->member))
			return __btf_member_bit_offset(t, member) ==
			       m->offset * BITS_PER_BYTE;
	}
	return false;
}

/*
 * Backports change prototypes, and point releases what headers do not show. The
 * kernel's own type information (BTF) tells.
 */
static int check_types(void)
{
	struct btf *btf = af_fault() ? NULL : af_call(bpf_get_btf_vmlinux)();
	const struct af_expected_member *m;
	const struct proto *p;
	int ret;

	if (IS_ERR_OR_NULL(btf)) {
		pr_err("this kernel has no type information (CONFIG_DEBUG_INFO_BTF)\n");
		return -ENOEXEC;
	}
	for (p = protos; p < protos + ARRAY_SIZE(protos); p++) {
		ret = check_proto(btf, p);
		if (ret)
			return ret;
	}
	for (m = af_expected_members; m->type; m++)
		if (!member_fits(btf, m)) {
			pr_err("struct %s, member %s is not where it was in the tested kernels\n",
			       m->type, m->member);
			return -ENOEXEC;
		}
	return 0;
}

/**
 * af_symbols_init - check the kernel's types, resolve what the module calls
 *
 * Return: 0, -ENOENT after naming the symbol that is missing, or -ENOEXEC after
 * naming what is not as the module was written for.
 */
int af_symbols_init(void)
{
	unsigned long addr = kprobe_address("kallsyms_lookup_name");
	int ret;

	if (!addr)
		return -ENOENT;
	static_call_update(af_call_kallsyms_lookup_name, (void *)addr);

	ret = resolve(TYPES);
	if (ret)
		return ret;
	ret = check_types();
	if (ret)
		return ret;
	ret = resolve(CHECKED);
	if (ret)
		return ret;

	af_mmlist_lock = (spinlock_t *)af_symbol("mmlist_lock");
	return af_mmlist_lock ? 0 : -ENOENT;
}

/* Does @caller hold a CALL or JMP rel32 to @callee? */
static bool calls(unsigned long caller, unsigned long callee)
{
	unsigned long size, offset, ip, target;
	s32 offset32;

	if (!af_call(kallsyms_lookup_size_offset)(caller, &size, &offset) ||
	    offset || size > SZ_64K)
		return false;

	for (ip = caller; ip + 5 <= caller + size; ip++) {
		u8 op = *(u8 *)ip;

		if (op != 0xe8 && op != 0xe9)
			continue;
		memcpy(&offset32, (void *)(ip + 1), sizeof(offset32));
		target = ip + 5 + offset32;
		/*
		 * A direct call may be linked to behind the ENDBR, and call
		 * depth tracking makes it go through the padding before.
		 */
		if (target >= callee - AF_CALL_PADDING && target <= callee + 4)
			return true;
	}
	return false;
}

static bool any_calls(const char *const *callers, size_t n, unsigned long callee)
{
	unsigned long caller;

	for (; n && *callers; n--, callers++) {
		/* None of this name: inlined. */
		caller = af_call(kallsyms_lookup_name)(*callers);
		if (caller && calls(caller, callee))
			return true;
	}
	return false;
}

/**
 * af_symbols_check_calls - do the hooked functions get called where expected?
 *
 * A caller into which the compiler inlined the hooked function would bypass
 * the hook, and memory would be lost.
 *
 * Return: 0, -ENOENT, or -ENOEXEC after naming the call that is missing.
 */
int af_symbols_check_calls(void)
{
	const struct af_expected_call *c;
	unsigned long callee;

	for (c = af_expected_calls; c->callee; c++) {
		callee = af_symbol(c->callee);
		if (!callee)
			return -ENOENT;
		if (!any_calls(c->callers, ARRAY_SIZE(c->callers), callee)) {
			pr_err("%s does not call %s in this kernel\n",
			       c->callers[0], c->callee);
			return -ENOEXEC;
		}
	}
	return 0;
}
