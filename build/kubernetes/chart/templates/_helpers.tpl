{{- define "podyard.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* What selects the pods of a component; never changes. */}}
{{- define "podyard.selector" -}}
app.kubernetes.io/name: podyard
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "podyard.labels" -}}
app.kubernetes.io/name: podyard
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: podyard
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "podyard.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "podyard.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* How it finds the cluster: the same for whoever works on spaces. */}}
{{- define "podyard.kubernetesArgs" -}}
- --kubernetes-namespace={{ .Values.spaces.namespace }}
- --kubernetes-installation={{ .Values.spaces.installation }}
{{- with .Values.spaces.storageClass }}
- --kubernetes-storage-class={{ . }}
{{- end }}
{{- range .Values.spaces.pullSecrets }}
- --kubernetes-pull-secret={{ . }}
{{- end }}
{{- range $key, $value := .Values.spaces.nodeSelector }}
- {{ printf "--kubernetes-node-selector=%s=%s" $key $value | quote }}
{{- end }}
- --log-format=json
{{- range .Values.spaces.args }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "podyard.spacesArgs" -}}
- --driver=kubernetes
- --start-timeout={{ .Values.spaces.startTimeout }}
{{- if .Values.customResources.enabled }}
- --kubernetes-way=custom-resources
{{- end }}
{{ include "podyard.kubernetesArgs" . }}
{{- end }}

{{- define "podyard.databaseEnv" -}}
- name: PODYARD_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.database.secret }}
      key: {{ .Values.database.key }}
{{- end }}

{{- define "podyard.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
