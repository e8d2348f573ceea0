// SPDX-License-Identifier: GPL-2.0
/*
 * Stand-in for NVIDIA's kernel module on hosts with a kernel of their own: it is built by DKMS, loaded and signed
 * like the real one, shows its version and the GPUs it is told of under /proc/driver/nvidia, and drives nothing.
 * Formats: kernel-open/nvidia/nv-procfs.c of NVIDIA's open-gpu-kernel-modules.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/seq_file.h>

#define MAJOR_NUMBER 195
#define MOST_GPUS 16

static char *addresses[MOST_GPUS];
static int count;
module_param_array(addresses, charp, &count, 0444);
MODULE_PARM_DESC(addresses, "PCI addresses of the GPUs");
static char *model = "NVIDIA H20";
module_param(model, charp, 0444);
MODULE_PARM_DESC(model, "name of the GPUs");

static const struct file_operations nothing = { .owner = THIS_MODULE };
static struct proc_dir_entry *top;

static int show_version(struct seq_file *out, void *unused)
{
	seq_printf(out, "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (dkms)\n", VERSION);
	seq_puts(out, "GCC version:  gcc version " __VERSION__ "\n");
	return 0;
}

static int show_information(struct seq_file *out, void *unused)
{
	long minor = (long)out->private;

	seq_printf(out, "Model: \t\t %s\nIRQ:   \t\t %ld\n", model, 300 + minor);
	seq_printf(out, "GPU UUID: \t GPU-00000000-0000-5000-8000-%012ld\n", minor);
	seq_printf(out, "Bus Location: \t %s\nDevice Minor: \t %ld\n", addresses[minor], minor);
	seq_printf(out, "GPU Firmware: \t %s\nGPU Excluded:\t No\n", VERSION);
	return 0;
}

static int __init begin(void)
{
	struct proc_dir_entry *gpus, *place;
	long minor;
	int error = register_chrdev(MAJOR_NUMBER, "nvidia-frontend", &nothing);

	if (error)
		return error;
	top = proc_mkdir("driver/nvidia", NULL);
	proc_create_single("version", 0444, top, show_version);
	gpus = proc_mkdir("gpus", top);
	for (minor = 0; minor < count; minor++) {
		place = proc_mkdir(addresses[minor], gpus);
		proc_create_single_data("information", 0444, place, show_information, (void *)minor);
	}
	pr_info("NVRM: loading NVIDIA UNIX Open Kernel Module  %s (stand-in, %d GPUs)\n", VERSION, count);
	return 0;
}

static void __exit end(void)
{
	proc_remove(top);
	unregister_chrdev(MAJOR_NUMBER, "nvidia-frontend");
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Stand-in for NVIDIA's kernel module");
MODULE_VERSION(VERSION);
