// SPDX-License-Identifier: GPL-2.0
/* Stand-in for NVIDIA's module of unified memory: it takes a major number, which /proc/devices shows. */
#include <linux/fs.h>
#include <linux/module.h>

static const struct file_operations nothing = { .owner = THIS_MODULE };
static int major;

static int __init begin(void)
{
	major = register_chrdev(0, "nvidia-uvm", &nothing);
	return major < 0 ? major : 0;
}

static void __exit end(void)
{
	unregister_chrdev(major, "nvidia-uvm");
}

module_init(begin);
module_exit(end);
MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("Stand-in for NVIDIA's module of unified memory");
MODULE_VERSION(VERSION);
